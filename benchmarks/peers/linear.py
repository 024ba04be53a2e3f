"""PECOS XR-Linear and omikuji Parabel on tf-idf 1-2-grams; runs in an environment of its own (see bench_peers.py).

usage: python linear.py FOLDER
FOLDER holds train.txt and test.txt, a text a line, and labels.npz (N, L); NAME.npy (N, 100) and seconds.json are put there.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from sklearn.feature_extraction.text import TfidfVectorizer

DEPTH, BEAM, THREADS = 100, 20, 2


def read(folder: Path) -> tuple[sp.csr_matrix, sp.csr_matrix, sp.csr_matrix]:
    """Return tf-idf rows of the training and test texts, and the training labels."""
    train, test = (
        [line.rstrip("\n") for line in (folder / name).open(encoding="utf-8", newline="\n")]
        for name in ("train.txt", "test.txt")
    )
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    rows = [sp.csr_matrix(matrix) for matrix in (vectorizer.fit_transform(train), vectorizer.transform(test))]
    for matrix in rows:
        matrix.sort_indices()
    labels = sp.csr_matrix(sp.load_npz(folder / "labels.npz"), dtype=np.float32)
    return rows[0], rows[1], labels


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """Return ranked ids as (N, DEPTH), −1 where a peer gave fewer."""
    ranked = np.full((len(rows), DEPTH), -1, dtype=np.int64)
    for number, ids in enumerate(rows):
        ranked[number, : len(ids)] = ids[:DEPTH]
    return ranked


def pecos(train: sp.csr_matrix, test: sp.csr_matrix, labels: sp.csr_matrix) -> tuple[np.ndarray, float, float]:
    """Return ranked ids, seconds of training, seconds of prediction."""
    from pecos.xmc import Indexer, LabelEmbeddingFactory
    from pecos.xmc.xlinear.model import XLinearModel

    start = time.perf_counter()
    tree = Indexer.gen(LabelEmbeddingFactory.create(labels, train, method="pifa"))
    model = XLinearModel.train(train, labels, C=tree, threads=THREADS)
    trained = time.perf_counter()
    scores = model.predict(test, beam_size=BEAM, only_topk=DEPTH, threads=THREADS).tocsr()
    done = time.perf_counter()
    rows = [
        scores.indices[a:b][np.argsort(-scores.data[a:b], kind="stable")]
        for a, b in zip(scores.indptr, scores.indptr[1:], strict=False)
    ]
    return padded(rows), trained - start, done - trained


def omikuji(train: sp.csr_matrix, test: sp.csr_matrix, labels: sp.csr_matrix) -> tuple[np.ndarray, float, float]:
    """Return ranked ids, seconds of training, seconds of prediction."""
    import omikuji as library

    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(f"{train.shape[0]} {train.shape[1]} {labels.shape[1]}\n")
        for row in range(train.shape[0]):
            features = slice(train.indptr[row], train.indptr[row + 1])
            positives = labels.indices[labels.indptr[row] : labels.indptr[row + 1]]
            pairs = " ".join(f"{c}:{v:.5f}" for c, v in zip(train.indices[features], train.data[features], strict=False))
            file.write(f"{','.join(map(str, positives))} {pairs}\n")
        file.flush()
        start = time.perf_counter()
        model = library.Model.train_on_data(file.name, library.Model.default_hyper_param(), n_threads=THREADS)
        trained = time.perf_counter()
    queries = [
        list(zip(test.indices[a:b].tolist(), test.data[a:b].tolist(), strict=False))
        for a, b in zip(test.indptr, test.indptr[1:], strict=False)
    ]
    start_predict = time.perf_counter()
    rows = [np.array([label for label, _ in model.predict(query, top_k=DEPTH, beam_size=BEAM)]) for query in queries]
    return padded(rows), trained - start, time.perf_counter() - start_predict


def main(folder: Path) -> None:
    """Run both peers and leave their answers."""
    train, test, labels = read(folder)
    seconds = {}
    for name, peer in (("PECOS XR-Linear", pecos), ("omikuji Parabel", omikuji)):
        ranked, training, prediction = peer(train, test, labels)
        np.save(folder / f"{name}.npy", ranked)
        seconds[name] = {"train": training, "predict": prediction}
    (folder / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
