"""What only newer ComfyUIs know of a node: words to find it by, inputs that few need."""

from inspect import signature

from comfy_api.latest import io


def search_words(*words: str) -> dict:
    """Return the schema's field with words that find a node too; nothing on older hosts."""
    knows = "search_aliases" in io.Schema.__dataclass_fields__
    return {"search_aliases": list(words)} if knows else {}


def advanced() -> dict:
    """Return what folds an input away on the node; nothing on older hosts."""
    return {"advanced": True} if "advanced" in signature(io.Int.Input).parameters else {}
