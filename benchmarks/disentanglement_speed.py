"""Seconds of every disentanglement metric on codes of 10 dimensions, factors of 3, 6, 40, 32 and 32 values.

    python benchmarks/disentanglement_speed.py --protocol quick
    python benchmarks/disentanglement_speed.py --protocol locatello2019 --reference

The codes are synthetic. With --reference DCI is also computed by scikit-learn's GradientBoostingClassifier,
on the same codes; without it, its row of an earlier run is kept. Standard errors are part of the times.
Beside the time on the wall is that of the processor over all threads, which other work on the machine
disturbs less. Results replace those of the same protocol in the folder results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.ensemble import GradientBoostingClassifier
from torch import Tensor

from vaezoo.evaluation import disentanglement as d
from vaezoo.evaluation.information import (
    BINS,
    binned_information,
    discretize,
    info_compactness,
    info_modularity,
    modularity,
    mutual_information_gap,
    neighbour_information,
    without_ties,
)
from vaezoo.evaluation.intervention import (
    beta_vae_score,
    factor_vae_score,
    fixed_factor_variances,
    interventional_robustness,
    shared_factor_differences,
)
from vaezoo.evaluation.prediction import (
    dci_completeness,
    dci_disentanglement,
    dci_importances,
    explicitness,
    predictive_information,
    separated_attributes,
)
from vaezoo.evaluation.unsupervised import measure_unsupervised

SIZES = (3, 6, 40, 32, 32)
CODES = 10
RESULTS = Path(__file__).parent / "results" / "disentanglement_speed.json"


def encoder(seed: int) -> Callable[[Tensor], Tensor]:
    """Codes that mix two factors or none each, with noise; two dimensions are noise alone."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(len(SIZES), CODES, generator=generator)
    mixing *= torch.rand(len(SIZES), CODES, generator=generator) < 0.3
    mixing[:, -2:] = 0
    mixing *= 4
    scale = torch.tensor(SIZES)
    pool = 0.2 * torch.randn(
        200_000, CODES, generator=generator
    )  # what is timed is the metrics, not the noise

    def encode(factors: Tensor) -> Tensor:
        start = int(torch.randint(len(pool) - len(factors), (), generator=generator))
        return torch.addmm(pool[start : start + len(factors)], factors / scale - 0.5, mixing)

    return encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--protocol", choices=d.PROTOCOLS, default="quick")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for DCI")
    parser.add_argument("--reference", action="store_true", help="DCI by scikit-learn too (minutes)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # small tensors; more threads would wait for each other
    protocol = d.PROTOCOLS[args.protocol]

    draws = torch.Generator().manual_seed(args.seed)
    n = d.POINTS + protocol.test
    factors = torch.stack([torch.randint(size, (n,), generator=draws) for size in SIZES], 1)
    encode = encoder(args.seed)
    codes = encode(factors)
    x, v = codes.double().numpy(), factors.numpy()
    held = slice(d.POINTS, None)
    train, test = (x[: protocol.train], v[: protocol.train]), (x[held], v[held])
    rows: dict[str, dict[str, float]] = {}

    def timed(name: str, measure: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = measure()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rows[name] = {"wall_seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}
        return result

    def record(name: str, value: float) -> None:
        rows[name]["value"] = round(float(value), 5)
        print(name, rows[name], flush=True)

    measured, values = codes[: d.POINTS], factors[: d.POINTS]
    every, counts = tuple(range(len(SIZES))), (protocol.train_batches, protocol.test_batches)

    def mig(information: Tensor, entropies: Tensor) -> Tensor:
        return mutual_information_gap(information, entropies).mean()

    def mean_modularity(information: Tensor, _: Tensor) -> Tensor:
        return modularity(information).mean()

    for name, score in (("mig", mig), ("modularity", mean_modularity)):
        value, _ = timed(name, lambda score=score: binned_information(measured, values, SIZES).measure(score))
        record(name, value)

    scores, *_ = timed("sap", lambda: separated_attributes(*train, *test, (False,) * len(SIZES)))
    scores = np.sort(scores, 0)
    record("sap", (scores[-1] - scores[-2]).mean())
    areas = timed(
        "explicitness",
        lambda: [explicitness(train[0], train[1][:, f], test[0], test[1][:, f])[0] for f in every],
    )
    record("explicitness", np.mean(areas))
    shares = timed("infoe", lambda: [predictive_information(train[0], train[1][:, f]) for f in every])
    record("infoe", np.mean(shares))

    def infomec() -> Any:
        noise, multipliers = (
            torch.randn(shape, dtype=torch.float64, generator=draws)
            for shape in ((len(measured), CODES), (d.DRAWS, len(measured)))
        )
        information = neighbour_information(without_ties(measured, noise), values, SIZES)
        return [information.bootstrap(score, multipliers)[0] for score in (info_modularity, info_compactness)]

    infom, infoc = timed("infom and infoc", infomec)
    record("infom and infoc", (infom + infoc) / 2)

    def irs() -> list[Tensor]:
        bins = discretize(values)
        parts = [slice(None), *(slice(part, None, d.PARTS) for part in range(d.PARTS))]
        return [interventional_robustness(measured[part], bins[part], BINS) for part in parts]

    record("irs", timed("irs", irs)[0])
    unsupervised = timed("unsupervised scores", lambda: measure_unsupervised(measured, ""))
    record("unsupervised scores", unsupervised["mutual_information_score"].value)

    def beta() -> Any:
        pairs = [shared_factor_differences(encode, SIZES, every, count, draws) for count in counts]
        return beta_vae_score(*(array.numpy() for pair in pairs for array in pair))

    def factor() -> Tensor:
        pairs = [fixed_factor_variances(encode, SIZES, every, count, draws) for count in counts]
        return factor_vae_score(*pairs[0], *pairs[1], measured.double().var(0), len(SIZES))

    record("beta_vae_score", timed("beta_vae_score", beta).mean())
    record("factor_vae_score", timed("factor_vae_score", factor).float().mean())
    rows["all but dci"] = {
        key: round(sum(row[key] for row in rows.values()), 3) for key in ("wall_seconds", "cpu_seconds")
    }
    print("all but dci", rows["all but dci"], flush=True)

    importances, correct = timed(
        "dci",
        lambda: dci_importances(*train, *test, protocol.stages, args.seed, args.threads),
    )
    rows["dci"] |= dci(importances, correct)
    print("dci", rows["dci"], flush=True)
    timed(
        "standard errors of dci",
        lambda: d.importances_of_parts(*train, protocol.stages, args.seed, args.threads),
    )
    print("standard errors of dci", rows["standard errors of dci"], flush=True)

    if args.reference:

        def reference() -> tuple[np.ndarray, np.ndarray]:
            columns, right = [], []
            for f in range(len(SIZES)):
                fitted = GradientBoostingClassifier(n_estimators=protocol.stages, random_state=args.seed)
                fitted.fit(train[0], train[1][:, f])
                columns.append(fitted.feature_importances_)
                right.append(fitted.predict(test[0]) == test[1][:, f])
            return np.stack(columns, 1), np.stack(right, 1)

        rows["dci, scikit-learn"] = {}
        importances, correct = timed("dci, scikit-learn", reference)
        rows["dci, scikit-learn"] |= dci(importances, correct)
        print("dci, scikit-learn", rows["dci, scikit-learn"])

    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    earlier = content.get(args.protocol, {}).get("metrics", {})
    rows |= {name: row for name, row in earlier.items() if name.endswith("scikit-learn") and name not in rows}
    content[args.protocol] = {
        "codes": CODES,
        "factors": list(SIZES),
        "seed": args.seed,
        "threads": args.threads,
        "processors": os.cpu_count(),
        "load_average_at_the_end": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
        },
        "metrics": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


def dci(importances: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    return {
        "disentanglement": round(dci_disentanglement(importances), 5),
        "completeness": round(dci_completeness(importances), 5),
        "informativeness": round(float(correct.mean()), 5),
    }


if __name__ == "__main__":
    main()
