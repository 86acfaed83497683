"""Measures what merging the experts of a mixture costs: perplexity with half of them, by method.

    python scripts/experts_table.py /tmp/experts                  # trains a small Mixtral, then the table
    python scripts/experts_table.py /tmp/experts --experts 6      # of the model that is there
    python scripts/experts_table.py /tmp/experts --merges         # of the two that are trained on halves, merged
    python scripts/experts_table.py /tmp/experts --why            # what loses: groups, units or weights

A Mixtral of four layers with eight experts each learns to go on with docstrings of installed packages, two experts
for each token. Its experts are then merged into fewer by the methods of `evomerge experts`, on texts that it learnt
from, and dropped: the least used, and at random, ten times. Perplexity is that of docstrings that nothing has seen. A
copy with experts and hidden units in another order is averaged with the model as it is, and aligned. Two more
trainings of the model, each on half of the packages, are a pool to search on: `texts` holds what for. With
``--merges`` these are merged by `usage`, whose statistics are of 256 texts that each learnt from, as it is and tuned on
texts that nothing has seen, beside their average and weights by layer that are tuned alike. With ``--why`` each choice
in which Sub-MoE and M-SMoE differ is made by itself: groups by the routers' logits or by outputs; hidden units as
they stand or in order; means by use or plain. Rows of the router are means by use in all.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from evomerge.api.run import Run
from evomerge.api.searching import search
from evomerge.calibration.encoding import encode
from evomerge.calibration.expert_usage import counts_of, expert_usage
from evomerge.config.compose import compose_config
from evomerge.demo.docstrings import LIBRARIES, examples
from evomerge.demo.train import learning_rate_at
from evomerge.export.aligned_model import align
from evomerge.export.fewer_experts import fewer_experts, groups_of
from evomerge.export.writer import write_model
from evomerge.merge.alignment.finding import symmetries_of
from evomerge.merge.alignment.orders import Experts
from evomerge.merge.alignment.trial import put_in_order
from evomerge.merge.experts.merging import Layer, merged_layer
from evomerge.merge.methods import specs
from evomerge.models.architecture.equal_experts import Groups, router_rows
from evomerge.models.architecture.mixtures import mixtures_of, with_experts
from evomerge.protocols import CalibrationItem
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceRecipe, parameters
from evomerge.session.calibration import make_statistics, plan_calibration
from evomerge.session.pools import pool_from_config

MODEL: Mapping[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.02,
    "initializer_range": 0.05,
}
VOCABULARY, LENGTH, BATCH, RATE = 1000, 48, 48, 3e-3
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
DRAWS = 10
CALIBRATION = 128
MOST_TOKENS = 512  # of a text that `evomerge experts` sees the experts at work on
HALVES = {"a": LIBRARIES[::2], "b": LIBRARIES[1::2]}
ORDER = ("base", *HALVES)


def main() -> None:
    """Train what is not there, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--experts", type=int, default=4, help="that are left")
    parser.add_argument("--steps", type=int, default=1200, help="of the training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merges", action="store_true", help="of the two fine-tunes, in place of fewer experts")
    parser.add_argument("--why", action="store_true", help="each choice of the methods by itself")
    parser.add_argument("--evaluations", type=int, default=80, help="of a search")
    parser.add_argument("--texts", type=int, default=120, help="that a search sees")
    options = parser.parse_args()
    if not (options.folder / "base").is_dir():
        train_all(options.folder, options.steps, options.seed)
    if options.merges:
        merges(options.folder, options.evaluations, options.texts)
        return
    if options.why:
        choices(options.folder, options.experts)
        return
    table(options.folder, options.experts)
    permuted(options.folder)


def texts_of(seed: int) -> dict[str, dict[str, list[str]]]:
    """First sentences of docstrings by part (train, search, held_out) and library; no text is in two parts."""
    rng = np.random.default_rng(seed)
    own = examples(1500, rng)["library"]
    parts = rng.choice(("train", "search", "held_out"), len(own), p=(0.8, 0.05, 0.15))
    found: dict[str, dict[str, list[str]]] = {
        p: {name: [] for name in LIBRARIES} for p in ("train", "search", "held_out")
    }
    for example, part in zip(own, parts, strict=True):
        found[str(part)][example.label].append(example.text)
    return found


def train_all(folder: Path, steps: int, seed: int) -> None:
    """The model, a fine-tune of it on each half of the packages, and the texts."""
    from transformers import MixtralConfig, MixtralForCausalLM

    texts = texts_of(seed)
    train = [text for own in texts["train"].values() for text in own]
    tokenizer = make_tokenizer(train)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(seed)
    model = MixtralForCausalLM(MixtralConfig(vocab_size=len(tokenizer), **ids, **MODEL))
    rng = np.random.default_rng(seed)
    run(model, tokenizer, train, steps, RATE, rng)
    save(model, tokenizer, folder / "base")
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, libraries in HALVES.items():
        model.load_state_dict(start)
        run(model, tokenizer, [t for lib in libraries for t in texts["train"][lib]], steps // 4, RATE / 4, rng)
        save(model, tokenizer, folder / name)
    (folder / "texts").mkdir()
    for part in ("train", "search", "held_out"):
        for name, libraries in {"all": LIBRARIES, **HALVES}.items():
            lines = [" ".join(text.split()) + "\n" for library in libraries for text in texts[part][library]]
            order = np.random.default_rng(seed).permutation(len(lines))
            (folder / "texts" / f"{name}-{part}.txt").write_text("".join(lines[i] for i in order), encoding="utf-8")


def make_tokenizer(texts: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer of the texts, which puts a beginning and an end around each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    )
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LENGTH, **names)


def rows(tokenizer: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Texts as a batch."""
    found = tokenizer(list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    return {key: found[key] for key in ("input_ids", "attention_mask")}


def run(model: Any, tokenizer: Any, texts: Sequence[str], steps: int, rate: float, rng: np.random.Generator) -> None:
    """Train in place."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * learning_rate_at(step, steps)
        batch = rows(tokenizer, [texts[i] for i in rng.integers(len(texts), size=BATCH)])
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {float(loss):.3f}", flush=True)
    model.eval()


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model with its tokenizer."""
    model.config.output_router_logits = False  # the loss of the routers is of the training alone
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.config.output_router_logits = True


def batches(tokenizer: Any, texts: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """All texts, so many at a time."""
    for start in range(0, len(texts), 64):
        yield rows(tokenizer, texts[start : start + 64])


def perplexity(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Over all tokens but the first of each text."""
    total, count = losses(model, tokenizer, texts)
    return math.exp(total / count)


def losses(model: Any, tokenizer: Any, texts: Sequence[str]) -> tuple[float, int]:
    """The sum of losses, and of how many tokens: all but the first of each text."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in batches(tokenizer, texts):
            logits = model(**batch, output_router_logits=False).logits[:, :-1]
            targets = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
            total += float(functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
            count += int((targets >= 0).sum())
    return total, count


def load(folder: Path) -> Any:
    """By plain transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).float().eval()


def read(path: Path) -> list[str]:
    """The texts of a file."""
    return path.read_text(encoding="utf-8").splitlines()


def smaller(model: Any, groups: Mapping[int, Groups], counts: Mapping[int, Any]) -> Any:
    """The model with these experts alone, in memory."""
    config = with_experts(model.config, len(next(iter(groups.values()))))
    other = type(model)(config).eval()
    state = model.state_dict()
    for own in mixtures_of(model):
        layer = Layer(state[own.router], state[own.gate_up], state[own.down])
        made = merged_layer(layer, groups[own.layer], counts[own.layer])
        state |= {own.router: made.router, own.gate_up: made.gate_up, own.down: made.down}
    other.load_state_dict(state)
    return other


def table(folder: Path, number: int) -> None:
    """Perplexities with fewer experts."""
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder / "base"), load(folder / "base")
    held_out, learnt = (
        read(folder / "texts" / "all-held_out.txt"),
        read(folder / "texts" / "all-train.txt")[:CALIBRATION],
    )
    texts = [CalibrationItem(text, "") for text in learnt]
    usage = expert_usage(model, mixtures_of(model), encode(texts, tokenizer, LENGTH))
    counts, total = counts_of(usage), mixtures_of(model)[0].count
    for layer, own in counts.items():
        print(f"layer {layer}: " + ", ".join(f"{share:.0%}" for share in own / own.sum()))
    print(f"| {number} of {total} experts | router | perplexity |\n| --- | --- | ---: |")
    print(f"| all {total} | | {perplexity(model, tokenizer, held_out):.2f} |", flush=True)
    settings: list[dict[str, Any]] = [
        {"method": m, "router": r} for m in ("m_smoe", "sub_moe") for r in ("mean", "dominant", "kept")
    ]
    settings += [{"method": "sub_moe", "router": "mean", "rank": rank} for rank in (0.75, 0.5, 0.25)]
    settings += [{"method": "sub_moe", "router": router, "align": True} for router in ("mean", "dominant")]
    settings += [{"method": "m_smoe", "router": "kept", "scope": "model"}]
    settings += [{"method": "drop", "router": "dominant"}]
    for setting in settings:
        out = folder / "fewer" / "-".join(str(own) for own in (number, *setting.values()))
        if not out.is_dir():
            fewer_experts(str(folder / "base"), out, number, texts=texts, **setting)
        value = perplexity(load(out), tokenizer, held_out)
        words = " ".join(
            f"{key} {own}" if key == "rank" else "aligned" if key == "align" else str(own)
            for key, own in setting.items()
            if key != "router"
        )
        print(f"| {words} | {setting['router']} | {value:.2f} |", flush=True)
    found = []
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        groups = {layer: tuple((int(e),) for e in np.sort(rng.permutation(total)[:number])) for layer in counts}
        found.append(perplexity(smaller(model, groups, counts), tokenizer, held_out))
    print(f"| dropped at random, mean of {DRAWS} | | {np.mean(found):.2f} ({min(found):.2f} to {max(found):.2f}) |")
    print("each: " + ", ".join(f"{value:.2f}" for value in sorted(found)))


def choices(folder: Path, number: int) -> None:
    """Perplexities with every choice of the methods by itself: what loses what."""
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder / "base"), load(folder / "base")
    held_out = read(folder / "texts" / "all-held_out.txt")
    texts = [CalibrationItem(text, "") for text in read(folder / "texts" / "all-train.txt")[:CALIBRATION]]
    usage = expert_usage(model, mixtures_of(model), encode(texts, tokenizer, MOST_TOKENS), outputs=True)
    counts = counts_of(usage)
    every = {
        "the routers' logits (M-SMoE)": groups_of(usage, number, "m_smoe", "layer", 0),
        "outputs (Sub-MoE)": groups_of(usage, number, "sub_moe", "layer", 0),
    }
    print("| groups by | hidden units | weights | perplexity |\n| --- | --- | --- | ---: |")
    for name, groups in every.items():
        for in_order in (False, True):
            for by_use in (True, False):
                made = _merged(model, groups, counts, in_order=in_order, by_use=by_use)
                units, weights = "in order" if in_order else "as they stand", "by use" if by_use else "equal"
                print(f"| {name} | {units} | {weights} | {perplexity(made, tokenizer, held_out):.1f} |", flush=True)


def _merged(
    model: Any, groups: Mapping[int, Groups], counts: Mapping[int, Any], *, in_order: bool, by_use: bool
) -> Any:
    """The model with an expert for each group, in memory; rows of the router are means by use."""
    other = type(model)(with_experts(model.config, len(next(iter(groups.values()))))).eval()
    state = model.state_dict()
    for own in mixtures_of(model):
        layer, used = Layer(state[own.router], state[own.gate_up], state[own.down]), counts[own.layer]
        made = merged_layer(layer, groups[own.layer], used if by_use else np.ones_like(used), align=in_order)
        rows = router_rows(layer.router, groups[own.layer], used, "mean")
        state |= {own.router: rows, own.gate_up: made.gate_up, own.down: made.down}
    other.load_state_dict(state)
    return other


def permuted(folder: Path) -> None:
    """Perplexities of averages with a copy in another order."""
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder / "base"), load(folder / "base")
    held_out = read(folder / "texts" / "all-held_out.txt")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    symmetries = symmetries_of(model, model.config, shapes)
    symmetries = replace(symmetries, free=frozenset({"experts", "expert_units"}))
    other = load(folder / "base")
    order = symmetries.random(np.random.default_rng(0))
    assert any(isinstance(group, Experts) for group in symmetries.groups.values())
    put_in_order(other, symmetries, order)
    save(other, tokenizer, folder / "permuted")
    if not (folder / "aligned").is_dir():
        align(str(folder / "base"), str(folder / "permuted"), folder / "aligned")
    aligned = load(folder / "aligned")
    own = model.state_dict()
    same = all(torch.equal(own[name], tensor) for name, tensor in aligned.state_dict().items())
    print(json.dumps({"aligned copy is the model, bit for bit": same}))
    for name, with_ in (("permuted", other), ("aligned", aligned)):
        average = load(folder / "base")
        average.load_state_dict({key: (own[key] + tensor) / 2 for key, tensor in with_.state_dict().items()})
        print(f"average with the {name} copy: perplexity {perplexity(average, tokenizer, held_out):.2f}", flush=True)


def merges(folder: Path, evaluations: int, texts: int) -> None:
    """Perplexities of the two fine-tunes, and of their merges untuned and tuned; searches are kept in the folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    held_out = [read(folder / "texts" / f"{name}-held_out.txt") for name in HALVES]

    def show(name: str, model: Any) -> None:
        each = [losses(model, tokenizer, own) for own in held_out]
        total, count = map(sum, zip(*each, strict=True))
        values = [math.exp(loss / tokens) for loss, tokens in ((total, count), *each)]
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |", flush=True)

    print("| | perplexity | of a's packages | of b's packages |\n| --- | ---: | ---: | ---: |")
    given = ["pool=custom", "pool.base=base", f"pool.models={{{', '.join(f'{n}: {folder / n}' for n in ORDER)}}}"]
    files = ", ".join(f"{name}: {folder / 'texts' / f'{name}-train.txt'}" for name in HALVES)
    read_by = ["search_space=parameter", "search_space.method=usage", "calibration=text"]
    read_by += [f"calibration.files={{{files}}}", "statistics.kinds=[routing]"]
    config = compose_config([*given, *read_by])
    found = plan_calibration(config, pool_from_config(config))
    assert found is not None, "usage reads statistics"
    make_statistics(found)
    for name in ORDER:
        show(name, load(folder / name))
    for name in ("linear", "usage"):
        out = folder / "merges" / name
        if not out.is_dir():
            write_model(equal(found.pool.info, name), found.pool, out)
        show("uniform average" if name == "linear" else f"`{name}`, untuned", load(out))
    seen = folder / "texts" / "all-search.txt"
    for name in ("linear", "usage"):
        run = folder / "merges" / f"search-{name}"
        words = [*given, *(read_by if name == "usage" else ["search_space=parameter", "search_space.method=linear"])]
        words += ["search_space.layer_group=layer", "search_space.components=all", "strategy=cma_es"]
        words += ["fitness=unlabelled", f"fitness.texts={{all: {{file: {seen}, limit: {texts}}}}}"]
        words += ["fitness@held_out=null", "search.baselines=false", "search.racing.first=null"]
        words += [f"search.evaluations={evaluations}", f"run_dir='{run}'"]
        tuned = Run(run) if run.exists() else search(*words, display="quiet")
        show(f"`{name}`, tuned", tuned.model().float().eval())


def equal(info: PoolInfo, method: str) -> Recipe:
    """Every slice of both fine-tunes merged by a method with equal weights, and all else as it is by default."""
    names = tuple(HALVES)
    spec = specs()[method]
    value = 1.0 / len(names) if method == "linear" else 1.0
    inputs = tuple(Input(name, None, parameters({"weight": value})) for name in names)
    shared = parameters({})
    assert spec.base == "none", "methods without a base"
    return info.recipe(SliceRecipe(own, method, inputs, shared) for own in info.slices)


if __name__ == "__main__":
    main()
