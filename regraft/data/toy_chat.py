"""Conversations in the toys' language, and the chat template of their tokenizer.

    user        anna paints the old river . note paris otter maple ;
    assistant   paris ;
    user        ask paris
    assistant   otter maple ;

A user tells things, which the assistant confirms by their key, or asks for one that was told. In
the template a turn begins with a word that says whose it is and ends with `</s>`.
"""

from __future__ import annotations

import random

from regraft.data.toy_language import KEYS, Mix, Prose, needles, note

TEMPLATE = (
    "<s>{% for message in messages %}"
    " {{ {'system': 'inside', 'user': 'then', 'tool': 'near', 'assistant': 'that'}[message.role] }}"
    " "
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }} </s>{% endgeneration %}"
    "{% else %}{{ message.content }} </s>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} that {% endif %}"
)


def conversation(rng: random.Random, words: int, mix: Mix) -> list[dict[str, str]]:
    """Messages of at least `words` words with their turns' beginnings and ends, and hardly more.

    mix: prose is the share of the words of a user's turn that tells; questions the share of turns
    that ask, once there is something to ask for.
    """
    prose, facts = Prose(rng), needles(rng, len(KEYS))
    unused, told = list(facts), list[str]()
    messages: list[dict[str, str]] = []
    length = 1
    while length < words:
        if told and (not unused or rng.random() < mix.questions):
            key = rng.choice(told)
            user, answer = ["ask", key], [*facts[key], ";"]
        else:
            key = unused.pop()
            told.append(key)
            sentences = [prose.sentence() for _ in range(3) if rng.random() < mix.prose]
            user = [word for sentence in sentences for word in sentence] + note(key, facts[key])
            answer = [key, ";"]
        for role, content in (("user", user), ("assistant", answer)):
            messages.append({"role": role, "content": " ".join(content)})
            length += len(content) + 2
    return messages
