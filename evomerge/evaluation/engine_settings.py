"""Which engine a worker generates and scores with, and what it is given. Imports nothing heavy."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from evomerge.candidate import Split
from evomerge.errors import ConfigError, nearest
from evomerge.evaluation.server_settings import ServerSettings
from evomerge.evaluation.vllm_source import check_arguments
from evomerge.utils.argument_text import arguments_in

ENGINES = ("transformers", "vllm", "server")
Quantise = Literal["int8", "nf4", "fp8"]
QUANTISE = get_args(Quantise)
"""What the weights of a resident model may be kept as."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks of adapters that vLLM keeps room for (its ``MaxLoRARanks``)."""

MOST, MOST_OF_VLLM = 4096, 256
"""Adapters at once, at most."""

_AT_ONCE = 8
"""As many as vLLM is given where nothing is said."""

_EXAMPLE = "evaluator.engine_args='{max_model_len: 4096}'"

_OURS = {
    "model": "the pool gives it",
    "tokenizer": "the pool gives it",
    "dtype": "set pool.dtype",
    "trust_remote_code": "set pool.trust_remote_code",
    "worker_extension_cls": "evomerge merges there",
    "tensor_parallel_size": "a worker takes all GPUs that it is given: evaluator.device=spread, or evaluator=ray "
    "evaluator.gpus_per_worker=2",
    "data_parallel_size": "several workers (evaluator=ray evaluator.workers=2) do that",
    "pipeline_parallel_size": "a worker spreads each layer over its GPUs",
    "quantization": "merged weights are not quantised",
    "load_format": "the pool gives the weights",
    "disable_log_stats": "evomerge sets it",
    "use_tqdm_on_load": "evomerge sets it",
    "skip_tokenizer_init": "stop strings need the tokenizer",
    "enable_lora": "evaluator.adapters_at_once says whether candidates go as adapters",
    "max_loras": "set evaluator.adapters_at_once",
    "lora_target_modules": "the pool's adapters say which",
}
"""Arguments of vLLM that follow from something else, and from what."""


@dataclass(frozen=True)
class EngineSettings:
    """What scores models.

    Attributes:
        name: ``transformers``: the resident model itself; ``vllm``: vLLM, whose weights are changed in place;
            ``server``: one that runs somewhere and is given adapters.
        arguments: of ``vllm.LLM``, named as there and as in lm-eval's ``--model_args``.
        server: where it is; ``None`` for the others.
        quantise: how the weights of the layers are kept while the search scores: ``int8``, ``nf4``, ``fp8``; ``None``
            for in full precision.
        quantise_held_out: whether finalists and held-out items are scored so too.
        adapters: how many candidates vLLM is given at once, where the pool is a base and adapters of it, and they are
            adapters too; 0: weights are changed in place for every candidate.
        adapters_open: whether nobody said how many.
    """

    name: str = "transformers"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    server: ServerSettings | None = None
    quantise: str | None = None
    quantise_held_out: bool = False
    adapters: int = 0
    adapters_open: bool = False

    def __post_init__(self) -> None:
        """Raise `ConfigError` for an unknown engine, or arguments that it has not or that are not the user's."""
        if self.name not in ENGINES:
            raise ConfigError(f"evaluator.engine is {self.name!r}", nearest(str(self.name), ENGINES))
        self._check_quantise()
        most = MOST_OF_VLLM if self.is_vllm else MOST
        if not isinstance(self.adapters, int) or isinstance(self.adapters, bool) or not 0 <= self.adapters <= most:
            given = f"evaluator.adapters_at_once is {self.adapters!r}"
            raise ConfigError(given, f"a whole number up to {most}; 0 for every candidate merged by itself")
        if not isinstance(self.arguments, Mapping):
            given = f"evaluator.engine_args is {self.arguments!r}"
            raise ConfigError(given, "a mapping", f"for example {_EXAMPLE}")
        if self.arguments and not self.is_vllm:
            raise ConfigError(
                f"evaluator.engine_args has {', '.join(map(str, self.arguments))} and evaluator.engine is {self.name}",
                "transformers takes none" if self.name == "transformers" else "a server was started with its own",
                "set evaluator.engine=vllm, or leave them out",
            )
        if self.is_server and self.server is None:
            raise ConfigError(
                "evaluator.engine is server and evaluator.server says nothing",
                "where it is: {url: http://host:port, model: NAME, adapters: FOLDER}",
            )
        for name in self.arguments:
            if name in _OURS:
                raise ConfigError(f"evaluator.engine_args has {name}", _OURS[name], "leave it out")
        if (rank := self.arguments.get("max_lora_rank")) is not None and rank not in RANKS:
            raise ConfigError(
                f"evaluator.engine_args.max_lora_rank is {rank!r}", f"one of {', '.join(map(str, RANKS))}"
            )

    def _check_quantise(self) -> None:
        if self.quantise is None:
            if self.quantise_held_out:
                raise ConfigError(
                    "evaluator.quantise_held_out is true and evaluator.quantise is null",
                    "there is nothing to quantise with",
                    f"set evaluator.quantise to {', '.join(QUANTISE)}, or leave it out",
                )
            return
        if self.quantise not in QUANTISE:
            allowed = nearest(str(self.quantise), QUANTISE)
            raise ConfigError(f"evaluator.quantise is {self.quantise!r}", f"{allowed}; or null")
        if self.name != "transformers":
            why = "vLLM packs quantised weights when it loads them, and has no way to change them in place"
            raise ConfigError(
                f"evaluator.quantise is {self.quantise} and evaluator.engine is {self.name}",
                why if self.is_vllm else "a server keeps its weights as it was started with them",
                "set evaluator.engine=transformers, or evaluator.quantise=null",
            )

    def quantises(self, split: Split) -> bool:
        """Whether items of a split are scored with quantised weights."""
        return self.quantise is not None and (split in ("search", "cheap") or self.quantise_held_out)

    @property
    def event(self) -> dict[str, Any]:
        """What a run's ledger says of it; empty for transformers in full precision."""
        held_out = self.quantises("held_out")
        other = {} if self.name == "transformers" else {"engine": self.name}
        return other | ({"quantise": self.quantise, "quantise_held_out": held_out} if self.quantise is not None else {})

    @property
    def in_full(self) -> EngineSettings:
        """The same engine in full precision."""
        return replace(self, quantise=None, quantise_held_out=False)

    @property
    def is_vllm(self) -> bool:
        """Whether it is vLLM."""
        return self.name == "vllm"

    @property
    def is_server(self) -> bool:
        """Whether it is a server."""
        return self.name == "server"

    @property
    def holds_modules(self) -> bool:
        """Whether a worker has the modules of a model: fitnesses may then look at them."""
        return self.name == "transformers"

    @classmethod
    def of(cls, node: Any, owner: tuple[str, str] = ("", "")) -> EngineSettings:
        """The settings in an evaluator's node, given as plain values; one without such keys has transformers.

        Args:
            node: of the configuration.
            owner: the run and the session, for names that a server is given.
        """
        if not isinstance(node, Mapping):
            return cls()
        name, given = node.get("engine") or "transformers", node.get("engine_args") or {}
        if isinstance(given, str):
            given = arguments_in(given, "evaluator.engine_args", _EXAMPLE.partition("=")[2])
        server = None
        if name == "server":
            server = ServerSettings.of(node.get("server") or {}, owner)
        else:
            ServerSettings.require_none(node.get("server"), str(name))
        given_adapters = node.get("adapters_at_once", 0)  # runs of before have no such key
        left_open = given_adapters is None and name == "vllm"
        if given_adapters is None:
            given_adapters = _AT_ONCE if name == "vllm" else 0
        elif given_adapters and name == "server":
            raise ConfigError(
                f"evaluator.adapters_at_once is {given_adapters!r} and evaluator.engine is server",
                "how many requests a server is given at once is evaluator.server.concurrency",
                "leave it out",
            )
        found = cls(
            name, given, server, node.get("quantise"), bool(node.get("quantise_held_out")), given_adapters, left_open
        )
        on_ray = (node.get("gpus_per_worker") or 0) > 1
        several = node.get("device") == "spread" or on_ray
        if found.is_vllm and on_ray and "distributed_executor_backend" in found.arguments:
            raise ConfigError(
                "evaluator.engine_args has distributed_executor_backend, and evaluator.gpus_per_worker is above 1",
                "vLLM's executor on Ray starts the processes of such an engine",
                "leave it out",
            )
        if found.quantise and several:
            raise spread_refusal(found.quantise)
        return found

    def require_installed(self) -> None:
        """Raise `ConfigError` where something is not installed, a server's key not set, or an argument not vLLM's."""
        if self.quantise == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                "evaluator.quantise is nf4, and bitsandbytes is not installed",
                "an environment with bitsandbytes",
                "pip install 'evomerge[quantise]', or set evaluator.quantise=int8, which needs no library",
            )
        if self.is_vllm and importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "evaluator.engine is vllm, and vLLM is not installed",
                "an environment with vLLM",
                "pip install 'evomerge[vllm]' into an environment of its own, or set evaluator.engine=transformers",
            )
        if self.is_vllm:
            check_arguments(self.arguments)
        if self.server is not None:
            self.server.require_key()
            if importlib.util.find_spec("tenacity") is None:
                raise ConfigError(
                    "evaluator.engine is server, and lm-eval's model of servers is not installed whole",
                    "tenacity beside lm_eval",
                    "pip install 'evomerge[server]'",
                )


def spread_refusal(quantise: str) -> ConfigError:
    """What to say where a quantised model would lie on several GPUs."""
    return ConfigError(
        f"evaluator.quantise is {quantise}, and a worker spreads its model over several GPUs",
        "a quantised model lies on one",
        "set evaluator.device=auto and evaluator.gpus_per_worker=1, or evaluator.quantise=null",
    )
