"""The house rule: imports go one way, and torch is imported nowhere."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# A module may import from its own layer and from those before it; the longest matching prefix decides.
LAYERS = [
    ["internvlu_jax.config", "internvlu_jax.config_files", "internvlu_jax.presets", "internvlu_jax.utils"],
    ["internvlu_jax.ops", "internvlu_jax.processing"],
    ["internvlu_jax.models"],
    ["internvlu_jax.flow", "internvlu_jax.decode"],
    ["converters", "internvlu_jax.checkpoints"],
    ["internvlu_jax.data", "internvlu_jax.inference"],
    ["internvlu_jax.training.config"],
    ["internvlu_jax.parallel"],
    ["internvlu_jax.training", "internvlu_jax.evaluation"],
    ["internvlu_jax.small_world", "internvlu_jax.demo"],
    ["internvlu_jax"],
    ["internvlu_jax.cli"],
    ["experiments"],
]


def layer(module: str) -> int | None:
    best, depth = None, -1
    for number, names in enumerate(LAYERS):
        for name in names:
            exact_only = name == "internvlu_jax"
            if (module == name or (not exact_only and module.startswith(name + "."))) and len(name) > depth:
                best, depth = number, len(name)
    return best


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def sources() -> list[Path]:
    files = [p for folder in ("internvlu_jax", "converters", "experiments") for p in (ROOT / folder).rglob("*.py")]
    assert len(files) > 20
    return files


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_imports_go_one_way():
    wrong = []
    for path in sources():
        own = layer(module_name(path))
        assert own is not None, f"{path} has no layer; add it to LAYERS"
        for name in imports(path):
            other = layer(name)
            if other is not None and other > own:
                wrong.append(f"{module_name(path)} imports {name}")
    assert not wrong, wrong


def test_no_source_imports_torch():
    banned = {"torch", "transformers", "diffusers", "torchvision"}
    assert not [(p, n) for p in sources() for n in imports(p) if n.split(".")[0] in banned]


def test_no_torch_in_the_process():
    code = "import sys, internvlu_jax.cli, internvlu_jax.inference.pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_processing_needs_no_jax():
    code = "import sys, internvlu_jax.processing.processor; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
