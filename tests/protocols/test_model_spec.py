"""Model specs promise: the layout of Hugging Face folders is given, or imported when it is asked for."""

from dataclasses import replace

from titan_pt.protocols.model_spec import get_model_spec


def test_a_layout_is_given_or_imported() -> None:
    spec = get_model_spec("transformer")
    layout = spec.layout()
    assert layout is not None and layout.to_name("norm.weight") == "model.norm.weight"
    assert replace(spec, hugging_face=layout).layout() is layout
    assert replace(spec, hugging_face=None).layout() is None
