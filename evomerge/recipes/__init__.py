"""Recipes: what a merged model is made of, and the YAML that says so. Files of this package do not import this one."""

from __future__ import annotations

from evomerge.recipes.method_spec import ByTensor, MethodSpec, ParameterSpec
from evomerge.recipes.pool_info import PoolInfo, baseline_recipes
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Component, Dtype, Input, ModelRef, SliceId, SliceRecipe, parameters
from evomerge.recipes.yaml_reader import dump_recipe, load_recipe, read_recipe_file

__all__ = [
    "ByTensor",
    "Component",
    "Dtype",
    "Input",
    "MethodSpec",
    "ModelRef",
    "ParameterSpec",
    "PoolInfo",
    "Recipe",
    "SliceId",
    "SliceRecipe",
    "baseline_recipes",
    "dump_recipe",
    "load_recipe",
    "parameters",
    "read_recipe_file",
]
