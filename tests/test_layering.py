"""The house rule: imports go one way, in the order that the README states, and torch is imported nowhere."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "internvlu_jax"


def stated_order() -> list[list[str]]:
    """Tiers of the README's code block with arrows: names of folders, and of modules that lie in the package itself."""
    (block,) = re.findall(r"```\w*\n([^`]*<-[^`]*)```", (ROOT / "README.md").read_text(encoding="utf-8"))
    return [tier.replace(",", " ").split() for tier in block.split("<-")]


TIERS = {name: number for number, names in enumerate(stated_order()) for name in names}
TIERS["__init__"] = TIERS["cli"]  # what `import internvlu_jax` gives is a front as the command is


def place(module: str) -> str | None:
    """The name that the order has for a module: its folder, or its own in the package; None if it is not ours."""
    top, name = [*module.split("."), ""][:2]
    if top != PACKAGE:
        return top if top in TIERS else None
    is_folder, is_module = ((ROOT / PACKAGE / file).exists() for file in (f"{name}/__init__.py", f"{name}.py"))
    return name if name and (is_folder or is_module) else "__init__"


def folder(name: str) -> str:
    """Modules that lie in the package itself share a folder."""
    return PACKAGE if (ROOT / PACKAGE / f"{name}.py").exists() else name


def may_import(own: str, other: str) -> bool:
    """From earlier tiers, and from the module's own folder."""
    return TIERS[other] < TIERS[own] or (TIERS[other] == TIERS[own] and folder(own) == folder(other))


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
    files = [p for top in (PACKAGE, "converters", "experiments") for p in (ROOT / top).rglob("*.py")]
    assert len(files) > 20
    return files


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_folder_has_its_place():
    """And the order names nothing that is not there."""
    assert {place(module_name(path)) for path in sources()} == set(TIERS)


def test_imports_go_one_way():
    wrong = []
    for path in sources():
        own = place(module_name(path))
        for name in imports(path):
            other = place(name)
            if other is not None and not may_import(own, other):
                wrong.append(f"{module_name(path)} imports {name}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_source_imports_torch():
    banned = {"torch", "transformers", "diffusers", "torchvision"}
    assert not [(p, n) for p in sources() for n in imports(p) if n.split(".")[0] in banned]


def test_no_torch_in_the_process():
    code = "import sys, internvlu_jax.cli, internvlu_jax.inference.pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_processing_needs_no_jax():
    code = "import sys, internvlu_jax.processing.processor; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
