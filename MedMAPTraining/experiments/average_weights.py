"""A bundle with the mean of two bundles' weights (model soup); all else is the first one's.

python MedMAPTraining/experiments/average_weights.py BUNDLE OTHER OUT --name NAME --version VERSION
"""

from __future__ import annotations

from pathlib import Path

from shared import script_parser

from medmap.bundle.loading import load_bundle, save_bundle


def main() -> None:
    """The command line."""
    parser = script_parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", required=True)
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    network = bundle.entries[0].network
    other_weights = load_bundle(options.other).entries[0].network.state_dict()
    average = {}
    for name, weight in network.state_dict().items():
        average[name] = (weight.float() + other_weights[name].float()) / 2
    network.load_state_dict(average)
    card = {}
    if "recipe" in bundle.card:
        card["recipe"] = bundle.card["recipe"]
    save_bundle(
        options.out,
        name=options.name,
        version=options.version,
        task=bundle.task,
        network=network,
        network_spec=bundle.network_spec,
        preprocess=bundle.preprocess,
        inference=bundle.inference,
        postprocess=bundle.postprocess,
        card=card,
    )


if __name__ == "__main__":
    main()
