"""The map has documents of every source, the same ones in any order."""

from __future__ import annotations

import numpy as np

from regraft.data.build.document import Document
from regraft.data.build.report import domain_map
from regraft.data.build.report.domain_map import Sample, draw_map


def _documents(count: int, source: str) -> list[Document]:
    return [Document(f"text {i} of {source}", str(i), source) for i in range(count)]


def _sample(documents: list[Document]) -> Sample:
    sample = Sample(["a", "b"])
    for document in documents:
        sample.add(document)
    return sample


def test_as_many_documents_of_each_source_are_drawn_in_any_order(monkeypatch) -> None:
    monkeypatch.setattr(domain_map, "_MOST", 20)
    documents = _documents(50, "a") + _documents(12, "b")
    texts = _sample(documents).texts()
    assert [len(drawn) for drawn in texts.values()] == [10, 10]
    assert set(texts["a"]) <= {document.text for document in documents[:50]}
    assert _sample(documents[::-1]).texts() == texts
    assert texts["a"] != [document.text for document in documents[:10]]


def test_a_map_is_drawn_of_ten_documents_or_more(tmp_path, monkeypatch) -> None:
    path = tmp_path / "map.png"
    assert draw_map(path, _sample(_documents(9, "a")), None) is None
    assert not path.exists()
    caption = draw_map(path, _sample(_documents(6, "a") + _documents(6, "b")), None)
    assert caption is not None
    assert caption.startswith("12 documents as they were written, at most 1,000 of a source;")
    assert caption.endswith("(principal components of hashed n-grams).")
    assert path.is_file()


def test_the_embedder_of_the_recipe_places_documents(tmp_path) -> None:
    class Embedder:
        def embed(self, texts):
            seen.extend(texts)
            return np.eye(len(texts), 16, dtype=np.float32)

    seen: list[str] = []
    caption = draw_map(tmp_path / "map.png", _sample(_documents(12, "b")), Embedder())
    assert sorted(seen) == sorted(f"text {i} of b" for i in range(12))
    assert caption is not None
    assert "embeddings of the step diversity" in caption
