"""A bundle with the mean of two bundles' weights; everything else is the first one's.

python MedMAPTraining/experiments/mean_weights.py BUNDLE OTHER OUT --name NAME --version VERSION
"""

from __future__ import annotations

import argparse
from pathlib import Path

from medmap.bundle.loading import load_bundle, save_bundle


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    given = parser.parse_args()
    one = load_bundle(given.bundle)
    network, other = (
        one.entries[0].network,
        load_bundle(given.other).entries[0].network.state_dict(),
    )
    network.load_state_dict(
        {
            key: (value.float() + other[key].float()) / 2
            for key, value in network.state_dict().items()
        }
    )
    save_bundle(
        given.out, name=given.name, version=given.version, task=one.task, network=network,
        network_spec=one.network_spec, preprocess=one.preprocess, inference=one.inference,
        postprocess=one.postprocess, card={key: one.card[key] for key in ("recipe",) if key in one.card},
    )  # fmt: skip


if __name__ == "__main__":
    main()
