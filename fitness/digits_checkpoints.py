"""Linear combinations of a perceptron's training checkpoints, scored on digits: LCSC without a pool of models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from evomerge.candidate import Part
from evomerge.errors import ConfigError
from evomerge.genomes.coefficients import summing_to_one
from evomerge.genomes.genome import Genome
from evomerge.protocols import Scores
from fitness.digits import DigitsFitness, load_images
from fitness.digits import Part as Images
from fitness.digits_seeds import RandomSeeds, gradient

Array = NDArray[np.float32]


@runtime_checkable
class Networks(Protocol):
    """Networks in an order, such as the checkpoints of a training."""

    def arrays(self) -> Sequence[Array]:
        """Their flat weights, float32."""


class TrainingCheckpoints:
    """Checkpoints of one training on the training images, from its first steps on, by Adam on few images a step.

    Each is some way off the training's course, since its gradients are of few images.

    Args:
        seed: of the first weights and of the images of each step.
        count: how many checkpoints.
        every: steps between two.
        batch: images of a step, drawn with replacement.
        rate: learning rate, which does not fall.
        std: standard deviation of a weight before training.
        hidden: units of the hidden layer.

    Raises:
        ConfigError: a number out of its range.
    """

    def __init__(
        self,
        *,
        seed: int,
        count: int = 16,
        every: int = 1,
        batch: int = 8,
        rate: float = 0.01,
        std: float = 0.05,
        hidden: int = 256,
    ) -> None:
        if count < 2 or every < 1 or batch < 1 or rate <= 0:
            raise ConfigError(
                f"checkpoints: count {count}, every {every}, batch {batch}, rate {rate}",
                "count at least 2, every and batch at least 1, rate above 0",
            )
        self._first = RandomSeeds(seed=seed, count=1, std=std, hidden=hidden)
        self._seed, self._count, self._every, self._batch = seed, count, every, batch
        self._rate, self._hidden = rate, hidden

    def arrays(self) -> list[Array]:
        """Flat weights in the order of `fitness.digits.DigitsFitness`, one array per checkpoint."""
        images, labels = load_images("train")
        rng = np.random.default_rng([self._seed, 1])
        weights = self._first.arrays()[0].copy()
        mean, square = np.zeros_like(weights), np.zeros_like(weights)
        kept = []
        for step in range(1, self._count * self._every + 1):
            drawn = rng.integers(len(images), size=self._batch)
            slope = gradient(weights, images[drawn], labels[drawn], self._hidden)
            mean += np.float32(0.1) * (slope - mean)
            square += np.float32(0.001) * (slope * slope - square)
            unbiased, size = mean / np.float32(1 - 0.9**step), square / np.float32(1 - 0.999**step)
            weights -= np.float32(self._rate) * unbiased / (np.sqrt(size) + np.float32(1e-8))
            if step % self._every == 0:
                kept.append(weights.copy())
        return kept


class CombinationFitness(DigitsFitness):
    """`DigitsFitness` of a linear combination of networks, whose coefficients are the genome; for evaluator=direct.

    Args:
        checkpoints: the networks, in order.
        cap: of the coefficients, as the search space has it (`search_spaces.checkpoints.CoefficientSpace`).
        part, hidden: as of `DigitsFitness`.

    Raises:
        ConfigError: networks of another size.
    """

    def __init__(self, *, checkpoints: Networks, cap: float, part: Images = "train", hidden: int = 256) -> None:
        super().__init__(part=part, hidden=hidden)
        self._networks = np.array(checkpoints.arrays())
        self._cap = cap
        if self._networks.shape[1:] != (self.size,):
            raise ConfigError(
                f"fitness.checkpoints has networks of {self._networks.shape[1:]} weights",
                f"{self.size}, for {hidden} units",
            )

    def score_genome(self, genome: Genome, part: Part | None = None) -> Scores:
        """Score the combination that a genome stands for, which has a coefficient for all networks but the first."""
        if len(genome) != len(self._networks) - 1:
            raise ConfigError(
                f"{len(genome)} coefficients were given for {len(self._networks)} networks",
                "one for each but the first",
                "name as many in search_space.names",
            )
        values = np.array(genome.values, dtype=np.float64)
        return self.score(summing_to_one(values, self._cap).astype(np.float32) @ self._networks)

    def fingerprint(self) -> str:
        """Hash of what `DigitsFitness` has there, of the networks and of the cap."""
        digest = hashlib.sha256(f"{super().fingerprint()} {self._cap}".encode())
        digest.update(self._networks.tobytes())
        return f"sha256:{digest.hexdigest()}"
