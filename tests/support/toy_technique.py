"""A technique for the tests: it scales what feed-forward layers give, and counts them."""

from dataclasses import dataclass

from vcut.vcut_core.technique import Technique


@dataclass(frozen=True)
class ToyConfig:
    """gain: factor on the output of every feed-forward layer; 1 changes nothing."""

    gain: float = 1.0


class ToyTechnique(Technique):
    key = "toy"
    config_class = ToyConfig

    def __init__(self, config, facts) -> None:
        super().__init__(config, facts)
        self.num_layers = 0

    def wants_layer(self, kind, axis):
        return kind == "feed-forward"

    def around_layer(self, call, compute):
        self.num_layers += 1
        return compute(call) * self.config.gain

    def lines(self):
        return [f"toy: {self.num_layers} layers scaled"]

    def counts(self):
        return {"num_layers": self.num_layers}
