"""The slices of one merge in a mergekit file, layer by layer and tensor by tensor, as mergekit plans them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from evomerge.errors import RecipeError
from evomerge.merge.methods import specs
from evomerge.mergekit.document import MAX_LAYERS, Document, Slice, Source
from evomerge.mergekit.filters import filter_entries
from evomerge.mergekit.forms import FORMS, PARAMETERS, form_of
from evomerge.mergekit.layers import depth_of, template
from evomerge.mergekit.references import Reference
from evomerge.mergekit.settings import Settings
from evomerge.models.architecture.layout import Layout
from evomerge.recipes.method_spec import ByTensor, ParameterSpec, Scalar, Value
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import LAYER_COMPONENTS, Component, Input, SliceId, SliceRecipe, parameters


class SliceReader:
    """Reads the slices of one document.

    Args:
        document: the merge.
        layout: of the pool's models.
        names: of the models.
        stages: the intermediates that the document may take, by name.

    Raises:
        RecipeError: sources that do not fit together or do not exist; names the key.
    """

    def __init__(
        self, document: Document, layout: Layout, names: Mapping[Reference, str], stages: Mapping[str, Recipe]
    ) -> None:
        self.document, self.layout, self.names, self.stages = document, layout, names, stages
        self.spec = specs()[document.method]
        self.form = form_of(self.spec)
        self._runs = [self._complete(slice_) for slice_ in document.slices]
        depth = sum(count for _, count in self._runs)
        if depth > MAX_LAYERS:
            raise RecipeError(f"the result has {depth:,} layers", f"{MAX_LAYERS:,} at most")

    def slices(self) -> list[SliceRecipe]:
        """Every slice of the result."""
        found: list[SliceRecipe] = []
        for slice_ in self.layout.slices:
            if slice_.layer is None:
                # mergekit reads embeddings with the first slice of the file, all else outside layers with the last.
                run, _ = self._runs[0 if slice_.component == "embed" else -1]
                found.append(self._slice(run, slice_, {}, 0.0))
        layer = 0
        for run, count in self._runs:
            for index in range(count):
                t = index / (count - 1) if count > 1 else 1.0
                found += self._layer(run, layer, index, t)
                layer += 1
        return found

    def _complete(self, slice_: Slice) -> tuple[Slice, int]:
        """A slice with the base that mergekit adds to listed models, and its number of layers."""
        base = slice_.base or self.document.base
        sources = [self._ranged(source) for source in slice_.sources]
        if self.document.whole and base is not None and base not in [source.model for source in sources]:
            if self.form.base == "ignored" and self.spec.name not in FORMS:
                do = "leave it out, or list it among the models"
                raise RecipeError(f"base_model is {base}", f"{self.spec.name} takes no base", do)
            sources.append(self._ranged(Source(base, None, {}, "base_model")))
        counts = [source.layers[1] - source.layers[0] for source in sources if source.layers]
        if len(set(counts)) > 1:
            raise RecipeError(
                f"{slice_.where} takes {' and '.join(map(str, counts))} layers", "as many layers of every source"
            )
        self._check_models([source.model for source in sources], base, slice_.where)
        return Slice(tuple(sources), base, slice_.settings, slice_.where), counts[0]

    def _ranged(self, source: Source) -> Source:
        """A source with its layers as numbers."""
        stage = self.stages.get(source.model.path)
        depth = depth_of(stage) if stage else self.layout.layers
        first, stop = source.layers or (0, depth)
        if stop > depth or (self.document.whole and (first, stop) != (0, depth)):
            only = f"{source.model} has {depth} layers"
            raise RecipeError(
                f"{source.where}.layer_range is [{first}, {stop}]",
                only if stop > depth else f"{only}, and models are taken whole",
                "" if stop > depth else "write slices with sources for parts of models",
            )
        return Source(source.model, (first, stop), source.settings, source.where)

    def _check_models(self, models: Sequence[Reference], base: Reference | None, where: str) -> None:
        for model in models:
            if models.count(model) > 1:
                raise RecipeError(f"{where} has {model} twice", "every model once, as in mergekit")
        if self.form.base == "ignored":
            return
        if base is None and self.form.base != "optional":
            raise RecipeError(f"{where} has no base_model", f"{self.spec.name} needs one")
        if base is not None and base not in models:
            raise RecipeError(f"{where} lacks its base_model {base}", "mergekit wants it among the sources")

    def _layer(self, run: Slice, layer: int, index: int, t: float) -> Iterator[SliceRecipe]:
        """The slices of one output layer."""
        layers = {source.where: source.layers[0] + index for source in run.sources if source.layers}
        for component in LAYER_COMPONENTS:
            if self._kind(component, layers[run.sources[0].where]):
                yield self._slice(run, SliceId(component, layer), layers, t)

    def _kind(self, component: Component, layer: int) -> tuple[str, ...]:
        """Names of the layout's tensors like those of a layer; a stage may have more layers than the pool's models."""
        return self.layout.tensors.get(SliceId(component, min(layer, self.layout.layers - 1)), ())

    def _slice(self, run: Slice, slice_: SliceId, layers: Mapping[str, int], t: float) -> SliceRecipe:
        """One output slice.

        Args:
            layers: the layer of each source, by its key; none for slices outside the layers.
            t: where in the run the layer lies, for gradients.
        """

        def kind(source: Source) -> tuple[str, ...]:
            if slice_.layer is None:
                return self.layout.tensors[slice_]
            return self._kind(slice_.component, layers[source.where])

        def names(source: Source) -> list[str]:
            return [self.layout.at_layer(name, layers.get(source.where, 0)) for name in kind(source)]

        def entry(source: Source, values: Mapping[str, Value]) -> Input:
            at = layers.get(source.where)
            model = source.model.path if source.model.path in self.stages else self.names[source.model]
            return Input(model, None if at == slice_.layer else at, parameters(values))

        outputs = kind(run.sources[0])
        base = next((source for source in run.sources if source.model == run.base), None)
        inputs = [source for source in run.sources if source is not base or self.form.base == "ignored"]
        if self.form.base == "first":
            assert base is not None, "checked when the run was completed"
            inputs = [base, *inputs]
        for source in inputs:
            if len(kind(source)) != len(outputs):
                raise RecipeError(
                    f"{source.where}: its {slice_.component} has other tensors", "layers of the same kind"
                )
        scopes = (run.settings, self.document.module, self.document.top)
        own_names = [self.layout.at_layer(name, slice_.layer or 0) for name in outputs]
        shared = {
            p.name: self._value(p, scopes, own_names, outputs, own_names, t, run.where) for p in self._declared(False)
        }
        each = [
            {
                p.name: self._value(p, (source.settings, *scopes), names(source), outputs, own_names, t, source.where)
                for p in self._declared(True)
            }
            for source in inputs
        ]
        origin = entry(base, {}) if base is not None and self.form.base in ("optional", "required") else None
        return SliceRecipe(
            slice_,
            self.spec.name,
            tuple(entry(source, values) for source, values in zip(inputs, each, strict=True)),
            parameters(shared),
            origin,
        )

    def _declared(self, per_input: bool) -> list[ParameterSpec]:
        return [p for p in self.spec.parameters if p.per_input == per_input]

    def _value(
        self,
        spec: ParameterSpec,
        scopes: Sequence[Settings],
        names: Sequence[str],
        kinds: Sequence[str],
        outputs: Sequence[str],
        t: float,
        where: str,
    ) -> Value:
        """A parameter's value for the tensors of a slice.

        Args:
            scopes: where it may be given, the narrowest first.
            names: what filters look at: of the source's tensors, or of the output's.
            kinds, outputs: the same tensors' names in the layout, and in the output.
        """
        besides = spec.name not in PARAMETERS and any(spec.name in scope for scope in scopes)
        if spec.name in self.form.readings and not besides:
            return self.form.readings[spec.name]
        settings = [scope[spec.name] for scope in scopes if spec.name in scope]
        found: list[Scalar] = []
        for name in names:
            value = next((v for setting in settings if (v := setting.at(name, t, spec)) is not None), None)
            if value is None and spec.name in self.form.required:
                raise RecipeError(f"{where} has no {spec.name} for {name}", f"{self.spec.name} needs one")
            found.append(spec.default if value is None else value)
        return self._by_tensor(found, kinds, outputs)

    def _by_tensor(self, values: Sequence[Scalar], kinds: Sequence[str], outputs: Sequence[str]) -> Value:
        """One value where all tensors have the same; else by tensor, spelt the same way for the same values."""
        if len({repr(value) for value in values}) == 1:
            return values[0]
        numbers = {
            template(self.layout, kind): value
            for kind, value in zip(kinds, values, strict=True)
            if not isinstance(value, str)
        }
        entries = filter_entries(numbers)
        if entries is not None:
            return ByTensor(tuple((part, value) for part, value in entries if not isinstance(value, tuple)))
        # Experts, say, differ by number: whole names, longer ones before those that they contain.
        *most, (_, rest) = sorted(zip(outputs, values, strict=True), key=lambda pair: -len(pair[0]))
        return ByTensor((*most, (None, rest)))
