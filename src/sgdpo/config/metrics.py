"""What conf/metrics.yaml says of the metrics that runs log: their titles, their order, and which way each is better."""

from collections.abc import Mapping
from typing import Any

from sgdpo.config.compose import written


def known_metrics() -> Mapping[str, Mapping[str, Any]]:
    """Return the metrics that matter, in the order that results show them."""
    return written(".", "metrics")


def metric_facts(metric: str) -> Mapping[str, Any]:
    """Return what is said of a logged metric; what is said of held-out pairs holds for others of the name."""
    return known_metrics().get(metric, known_metrics().get(f"eval/{metric.partition('/')[2]}", {}))


def lower_is_better(metric: str) -> bool:
    """Tell which way a logged metric is better, where nobody says it: as its facts do, else less of a loss."""
    return metric_facts(metric).get("better", "lower" if metric.endswith("loss") else "higher") == "lower"
