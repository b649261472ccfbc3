"""RULER's 13 tasks, built as NVIDIA's scripts build them (arXiv 2404.06654, Apache-2.0).

NVIDIA's: kinds of haystack, key and value; numbers of keys, values and queries; where needles,
chain lines and documents stand; repetitions and vocabulary sizes; the solved examples; tokens
reserved for the answer; scorers. Ours: the wording of the prompts, the word lists, the texts of the
haystacks and the random draws. Two more differences: each prompt is filled up to the requested
length, where NVIDIA's are filled once for all items, and no haystack is repeated to fill a length.
Read from github.com/NVIDIA/RULER at commit c3f5e3b.
"""
