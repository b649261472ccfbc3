"""Our word lists, for the text generator and for keys, and endless invented words.

Keys are adjective-noun pairs (some 25 thousand) or random identifiers; values are numbers of full
width, so that each has the same number of tokens.
"""

from __future__ import annotations

import random
from typing import Literal

Kind = Literal["words", "numbers", "uuids"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words("""
    amber ancient azure bitter bold brass brave bright brittle broad bronze calm careful civil
    clean clever coarse cold common cool coral costly crimson crisp curious damp dark deep
    distant dry dusty eager early earnest elder empty even faint fair famous fancy fierce fine
    firm flat fond foreign formal fragile frank fresh frosty frugal gentle giant glad golden
    grand grave green grey happy hardy hasty heavy hollow honest humble idle inland ivory jolly
    keen kind large late lean level light little lively local lofty lonely loose loud lucky
    marble mellow merry mild misty modest mossy muddy narrow neat new noble noisy northern odd
    old open orderly outer pale patient plain pleasant polite proud quick quiet rapid rare ready
    remote rich ripe robust rough round royal rural rusty sandy scarlet serene shady sharp short
    shy silent silver simple sincere slender slow small smooth sober solid southern spare
    splendid square steady stern stiff stony stout strict strong sturdy subtle sunny swift tall
    tame tender thick thin tidy tiny upper urban vast velvet violet vivid warm weary western
    wide wild windy wise wooden worthy young
""")
NOUNS = _words("""
    acorn anchor anvil apple apron arch arrow attic axle badge bakery banner barge barley barn
    barrel basin basket beacon beam bell bench blanket boat bonnet bottle bowl bracket branch
    brick bridge broom brush bucket buckle button cabin cabinet cable candle canoe canvas carpet
    cart castle cellar chain chair chalk chapel chest chimney cider clock cloth clover coach
    coal collar comb compass copper cork cottage cradle crane crate cupboard curtain cushion
    dairy desk dial ditch dock drawer drum easel engine fabric farm feather fence ferry fiddle
    field flag flask flour flute forge fork fountain frame furnace gallery garden gate gauge
    globe glove granary grape gravel grove hammer hammock handle harbour harness hatch hedge
    helmet hinge honey hook horn hotel hull inkwell iron jacket jar jewel kennel kettle keyhole
    kiln kitchen knapsack ladder ladle lamp lantern lathe lattice leather ledger lens letter
    library linen lodge loom magnet mallet mantle maple market marrow mast meadow medal melon
    mill mirror mitten moat mortar museum napkin needle nest nursery oar olive orchard oven
    paddle padlock palace parcel parlour pasture path pear pebble pencil pepper piano pickle
    pillar pillow pipe pitcher plank plate plough pocket pond porch portrait potato pottery
    pulley pump quarry quill quilt rafter rail raisin rake reef ribbon ridge river rocket roof
    rope rudder sack saddle sail satchel saucer sawmill scarf school shed shelf
    shovel shutter sickle signal skillet slate sled sleeve spade spice spindle spire spoon spring
    stable staircase statue steeple stool stove street sugar tablet tailor tavern teapot temple
    thimble ticket timber toolbox torch tower trellis trough trumpet trunk tunnel turnip valley
    vase vault vessel vineyard violin wagon wallet warehouse watch weaver wheel whistle willow
    window wool workshop yarn
""")
GIVEN = _words("""
    Ada Albert Alice Amos Anna Arthur Beatrix Bernard Clara Conrad Cora David Dora Edgar Edith
    Elias Ellen Ernest Esther Felix Flora Frank George Greta Harold Helen Henry Hilda Hugo Ida
    Irene Isaac Jacob Jane Joan Josef Judith Karl Kate Laura Leo Lena Louis Lydia Marcus Martha
    Max Mina Nathan Nell Nora Oscar Otto Paula Peter Rachel Ralph Rosa Rufus Ruth Samuel Sarah
    Silas Simon Stella Theo Thomas Ursula Vera Victor Walter Wilma
""")
FAMILY = _words("""
    Abbott Archer Ashby Barlow Bennet Birch Blake Bolton Brandt Burrow Carver Chase Colby Cooper
    Crane Dalton Dean Draper Eaton Ellis Farrow Fenner Fisher Foster Frost Garland Gibbs Glover
    Graham Gray Hale Harper Hayes Holt Hooper Howell Hurst Jarvis Keller Kemp Lambert Lane Larkin
    Lowell Mason Mercer Miles Moss Nash Norris Oakley Osborn Page Parker Perry Porter Pryor Quinn
    Ramsey Reeve Rowan Sawyer Sharp Shaw Slater Sloan Stone Sutton Tanner Thorne Tucker Turner
    Vance Wade Walsh Ward Weaver Wells Winter Wood Wright Yates
""")
TRADES = _words("""
    baker barber blacksmith bookbinder brewer butcher carpenter clockmaker cooper dentist
    farrier ferryman fisherman gardener glazier hatter innkeeper joiner judge lawyer librarian
    mason merchant miller miner musician nurse painter pilot plumber potter printer saddler
    sailor schoolmaster shepherd surveyor tailor tinker weaver
""")
_ONSETS = _words("b br c ch d dr f fl g gr h j k l m n p pl qu r s sh sl st t tr v w z")
_VOWELS = _words("a e i o u ai ea oo")
_CODAS = ("", "", "l", "m", "n", "r", "s", "t", "nd", "rk", "st")


def key(rng: random.Random, kind: Kind = "words") -> str:
    """A key: 'quiet-lantern', or a number or UUID as from `value`."""
    if kind == "words":
        return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
    return value(rng, kind)


def value(rng: random.Random, kind: Kind = "numbers", digits: int = 7) -> str:
    """A value: a number of exactly `digits` digits, a random UUID, or a key."""
    if kind == "numbers":
        return str(rng.randrange(10 ** (digits - 1), 10**digits))
    if kind == "uuids":
        text = f"{rng.getrandbits(128):032x}"
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
    return key(rng)


def distinct(
    rng: random.Random, kind: Kind, count: int, taken: set[str] | None = None
) -> list[str]:
    """`count` different keys or values that are not in `taken`, to which they are added."""
    taken = set() if taken is None else taken
    drawn: list[str] = []
    while len(drawn) < count:
        made = key(rng) if kind == "words" else value(rng, kind)
        if kind == "words" and made in taken:  # pairs are limited; invented words are not
            made = f"{made}-{made_up(rng)}" if len(taken) > 10_000 else made
        if made not in taken:
            taken.add(made)
            drawn.append(made)
    return drawn


def plural(noun: str) -> str:
    """'bench' -> 'benches'."""
    if noun.endswith(("s", "ch", "sh", "x")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun[-1] == "y" and noun[-2] not in "aeiou" else f"{noun}s"


def made_up(rng: random.Random) -> str:
    """An invented word of two or three syllables: 'tolarin'."""
    syllables = (
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((2, 2, 3)))
    )
    return "".join(syllables)


def coded(rng: random.Random, letters: int = 6) -> str:
    """Random letters."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(letters))
