"""The JSON Schema of a recipe, for editors."""

from typing import Any

from pydantic.json_schema import models_json_schema

from hf_sft.block import list_kinds, load_kind
from hf_sft.recipe.problems import FOLDERS
from hf_sft.recipe.recipe import Recipe


def schema() -> dict[str, Any]:
    """The JSON Schema of a recipe: with every task, method and aid that has a file, and dotted names beside them."""
    named_kinds = ((contract, name) for contract, folder in FOLDERS.items() for name in list_kinds(folder))
    kinds = [(contract, name, load_kind(FOLDERS[contract], name)) for contract, name in named_kinds]
    models: Any = [(model, "validation") for model in (Recipe, *FOLDERS, *(kind for *_, kind in kinds))]
    references, definitions = models_json_schema(models)
    named = definitions["$defs"]

    def key(model: Any) -> str:
        return references[model, "validation"]["$ref"].removeprefix("#/$defs/")

    for contract in FOLDERS:
        dotted = {"type": "object", "properties": {"type": {"type": "string", "pattern": r"\."}}, "required": ["type"]}
        description = named[key(contract)].get("description", "")
        named[key(contract)] = {"description": description, "oneOf": [dotted]}
    for contract, name, kind in kinds:
        described = named[key(kind)]["properties"]["type"].get("description", "")
        named[key(kind)]["properties"]["type"] = {"const": name, "description": described}
        named[key(contract)]["oneOf"].insert(-1, {"$ref": f"#/$defs/{key(kind)}"})
    top = named.pop(key(Recipe))
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": named}
