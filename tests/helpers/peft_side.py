"""The other side of `tests.converters.test_peft`: runs where peft, transformers and torch are, and needs none of ours.

    python peft_side.py FOLDER

FOLDER/sizes.json has the sizes of a Qwen3, FOLDER/ours an adapter that we wrote for the module that holds it as
`language_model`. Writes what we are to read: FOLDER/weights.safetensors (the model's), FOLDER/theirs (an adapter that
PEFT saved), and FOLDER/out.safetensors, last hidden states of fixed tokens: plain, with ours, with theirs, with both.

    python peft_side.py FOLDER PART ...

FOLDER/matrices.safetensors has matrices by the names of their modules, FOLDER/PART an adapter for some of them. Writes
FOLDER/merged.safetensors: the matrices with the adapters that PEFT found and merged.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

torch, transformers, peft = map(import_module, ("torch", "transformers", "peft"))
save_file = import_module("safetensors.torch").save_file
folder = Path(sys.argv[1])


def merged(matrices, parts):
    """Matrices as linear maps of a module, after PEFT has loaded each adapter and merged it."""
    root = torch.nn.Module()
    for name, matrix in matrices.items():
        *parents, last = name.split(".")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, torch.nn.Module())
            node = getattr(node, parent)
        linear = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
        linear.weight.data = matrix
        node.add_module(last, linear)
    for part in parts:
        root = peft.PeftModel.from_pretrained(root, folder / part).merge_and_unload()
    return {name: root.get_submodule(name).weight.detach() for name in matrices}


if len(sys.argv) > 2:
    matrices = import_module("safetensors.torch").load_file(folder / "matrices.safetensors")
    save_file(merged(matrices, sys.argv[2:]), folder / "merged.safetensors")
    sys.exit()


class Whole(torch.nn.Module):
    """The released model, as far as its language model goes."""

    def __init__(self, sizes):
        super().__init__()
        self.language_model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))

    def forward(self, ids):
        return self.language_model.model(ids).last_hidden_state


torch.manual_seed(0)
sizes = json.loads((folder / "sizes.json").read_text())
whole = Whole(sizes).eval()
ids = torch.arange(12)[None] % sizes["vocab_size"]
states = {name: tensor.contiguous() for name, tensor in whole.state_dict().items() if "lm_head" not in name}
save_file({name: tensor.clone() for name, tensor in states.items()}, folder / "weights.safetensors")
with torch.no_grad():
    out = {"ids": ids, "plain": whole(ids)}
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, init_lora_weights=False, target_modules=["q_proj", "o_proj", "up_proj"]
    )
    model = peft.get_peft_model(whole, settings, adapter_name="theirs")
    out["theirs"] = model(ids)
    model.save_pretrained(folder, selected_adapters=["theirs"])
    model.load_adapter(folder / "ours", "ours")
    model.set_adapter("ours")
    out["ours"] = model(ids)
    model.base_model.set_adapter(["ours", "theirs"])
    out["both"] = model(ids)
save_file({name: tensor.clone().contiguous() for name, tensor in out.items()}, folder / "out.safetensors")
