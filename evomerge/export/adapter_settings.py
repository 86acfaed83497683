"""``adapter_config.json`` of an adapter that is written, as PEFT reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.export.auto_class import auto_class
from evomerge.merge.adapters.places import AdapterBase, Places
from evomerge.models.pool import Pool


def adapter_settings(
    base: AdapterBase,
    places: Places,
    pool: Pool,
    *,
    ranks: Mapping[str, int],
    whole: Sequence[str],
    biases: bool,
    turned: bool,
) -> dict[str, Any]:
    """The settings of a LoRA adapter whose factors need no scale: alpha is the rank.

    Args:
        base: what it is added to.
        places, pool: of the model.
        ranks: of every module that has factors.
        whole: modules that are saved whole.
        biases: whether biases of modules with factors are saved.
        turned: whether some modules store their weights as inputs x outputs.
    """
    loads = auto_class(pool.config)
    # PEFT's classes for other tasks save the heads that they know by name, whether or not these differ.
    causal = loads == "AutoModelForCausalLM"
    module = type(places.module)
    largest = max(ranks.values())
    others = {path: rank for path, rank in sorted(ranks.items()) if rank != largest}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if causal else None,
        "auto_mapping": None if causal else {"base_model_class": module.__name__, "parent_library": module.__module__},
        "base_model_name_or_path": base.address,
        "revision": base.ref.revision,
        "inference_mode": True,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": places.patterns(set(ranks)),
        "modules_to_save": list(whole) or None,
        "bias": "lora_only" if biases else "none",
        "fan_in_fan_out": turned,
        # Both uses of tied embeddings are saved: PEFT ties those of some names only.
        "ensure_weight_tying": False,
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
