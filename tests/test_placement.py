"""A proof that can't be run is not one that said no; weights that wait elsewhere aren't lost sight of."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import accelerate
import pytest
import torch
from families import build, token_inputs, written
from warm_python import REAL

import headprune as hp
from headprune.errors import UnprovenError, is_out_of_memory
from headprune.placement import moved_away, saving_aside, staged, value_of
from headprune.runtime.files import staged_directory
from headprune.verify import loads_afresh, reload_is_identical


def _python(folder, monkeypatch, *, does):
    """Let child processes do something else than run Python."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))


ENDS = {
    "killed": ("kill -9 $$", "the process was killed"),
    "out of memory": (
        "echo torch.OutOfMemoryError: CUDA out of memory. >&2; exit 1",
        "memory ran out: torch.OutOfMemoryError: CUDA out of memory",
    ),
    "no room for a context": (
        "echo torch.AcceleratorError: CUDA error: out of memory >&2; echo Compile with X >&2; exit 1",
        "memory ran out: torch.AcceleratorError",
    ),
}


def test_a_crash_is_not_a_lack_of_memory(tmp_path, monkeypatch):
    model = build("bert")
    written(model, tmp_path / "out")
    _python(tmp_path, monkeypatch, does="kill -SEGV $$")
    proof = loads_afresh(tmp_path / "out", auto_class="AutoModel", route="stock", known=())
    assert not proof.passed
    assert "signal 11" in proof.detail


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("numbers", [True, False], ids=["reload", "names only"])
def test_a_process_that_ends_for_want_of_memory_proves_nothing(numbers, end, tmp_path, monkeypatch):
    model = build("bert")
    written(model, tmp_path / "out")
    does, words = ENDS[end]
    _python(tmp_path, monkeypatch, does=does)
    with pytest.raises(UnprovenError, match=words) as caught:
        if numbers:
            reload_is_identical(
                model, tmp_path / "out", inputs=token_inputs(), auto_class="AutoModel",
                route="stock",
            )  # fmt: skip
        else:
            loads_afresh(tmp_path / "out", auto_class="AutoModel", route="stock", known=())
    assert caught.value.exit_code == 2


@pytest.mark.nightly
def test_a_fresh_process_without_memory_proves_nothing(tmp_path, monkeypatch):
    """With as much address space as its libraries take, and less than the model's size more."""
    model = build("bert", vocab_size=4_000_000)  # 770 MB
    route = written(model, tmp_path / "out")
    probe = "import torch, transformers.modeling_utils; print(open('/proc/self/status').read())"
    status = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    ).stdout
    room = int(status.partition("VmPeak:")[2].split()[0]) + 300_000  # kB
    _python(tmp_path, monkeypatch, does=f'ulimit -v {room}; exec {REAL} "$@"')
    with pytest.raises(UnprovenError, match="memory ran out"):
        reload_is_identical(
            model, tmp_path / "out", inputs=token_inputs(), auto_class="AutoModel", route=route
        )


def test_what_could_not_be_proven_is_kept_aside_and_named(tmp_path):
    def write(number):
        with pytest.raises(UnprovenError) as caught, staged_directory(tmp_path / "out") as staging:
            (staging / "model").write_text(number)
            raise UnprovenError("memory ran out", where="a fresh process", hint="use more")
        return caught.value.hint

    assert write("1") == f"what was written is kept in {tmp_path / 'out.unproven'}; use more"
    assert "out.unproven-2;" in write("2")
    found = {path.name: (path / "model").read_text() for path in tmp_path.iterdir()}
    assert found == {"out.unproven": "1", "out.unproven-2": "2"}
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out.unproven").stat().st_mode) == 0o777 & ~umask


def test_the_command_line_leaves_with_2_where_a_proof_could_not_be_run(
    run_here, tokenizer, command_line, monkeypatch
):
    names = {0: "no", 1: "yes"}
    build("bert", id2label=names, label2id={"no": 0, "yes": 1}).save_pretrained("model")
    tokenizer.save_pretrained("model")
    rows = [f"w{index} w{index + 1},{names[index % 2]}" for index in range(40)]
    Path("data.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(run_here / ".cache"))
    _python(run_here, monkeypatch, does="kill -9 $$")
    code, _out, err = command_line(
        *("prune", "model", "--data", "data.csv", "--keep", "0.5", "--out", "small"),
        *("--method", "magnitude", "--reconstruct", "none"),
    )
    assert code == 2, err
    assert not Path("small").exists()
    assert (Path("small.unproven") / "model.safetensors").is_file()
    assert "small.unproven;" in err


def test_memory_that_runs_out_while_a_model_is_written_is_no_proof_that_could_not_be_run(
    tmp_path, monkeypatch
):
    def run_out(_model, directory, **_more):
        (directory / "model.safetensors").write_bytes(b"half")
        raise MemoryError

    monkeypatch.setattr("headprune.workflows.finish.write_model", run_out)
    with pytest.raises(MemoryError):
        hp.save(build("bert"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["tokenizer", "process"])
def test_memory_that_runs_out_around_a_fresh_process_proves_nothing(where, tmp_path, monkeypatch):
    def run_out(*_args, **_more):
        raise MemoryError

    name = {"tokenizer": "awkward_ids", "process": "load_afresh"}[where]
    monkeypatch.setattr(f"headprune.verify.{name}", run_out)
    with pytest.raises(UnprovenError, match="memory ran out"):
        hp.save(build("bert"), tmp_path / "out")
    assert (tmp_path / "out.unproven" / "model.safetensors").is_file()


def test_memory_that_runs_out_is_told_as_such(command_line, monkeypatch):
    import headprune.workflows.score

    def run_out(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(headprune.workflows.score, "score", run_out)
    code, _out, err = command_line("score", "demo:minilm")
    assert code == 2
    assert "memory ran out: CUDA out of memory" in err
    assert "--batch-size" in err


def test_what_memory_errors_look_like():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    )
    assert is_out_of_memory(
        RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")
    )
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for matmul"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("the sizes of tensors must match"))


def test_on_the_cpu_nothing_is_moved():
    model = build("bert")
    before = {name: value.data_ptr() for name, value in model.state_dict().items()}
    with moved_away(model):
        assert {name: value.data_ptr() for name, value in model.state_dict().items()} == before
    tensor = torch.ones(3)
    assert staged(tensor, torch.device("cpu")) is tensor


LAYOUTS = {
    "whole": lambda: torch.randn(3, 4),
    "transposed": lambda: torch.randn(3, 4).T,
    "padded": lambda: torch.randn(2, 3, 12)[:, :, :11],
    "repeated": lambda: torch.randn(3, 1).expand(3, 4),
    "padded and repeated": lambda: torch.randn(2, 1, 3, 12)[..., :11].expand(2, 4, 3, 11),
    "windows": lambda: torch.randn(9).unfold(0, 4, 1),
    "windows of rows": lambda: torch.randn(2, 90)[:, :9].unfold(1, 4, 1),
    "one number": lambda: torch.randn(()),
    "none": lambda: torch.randn(0, 4),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_a_backward_needs_comes_back_as_it_lay(layout):
    """Kernels choose by strides, and refuse some: a mask that was padded for one has to come back padded."""
    spread = accelerate.cpu_offload(build("bert"), execution_device="cpu")
    seen = []

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, other):
            ctx.save_for_backward(other)
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            seen.extend(ctx.saved_tensors)
            return grad, None

    given = LAYOUTS[layout]()
    with saving_aside(spread):
        result = Kernel.apply(torch.ones(1, requires_grad=True), given)
    expected, strides = given.clone(), given.stride()
    given.data = torch.full_like(given, 7.0)
    result.sum().backward()
    assert torch.equal(seen[0], expected)
    overlaps = layout.startswith("windows")
    assert seen[0].is_contiguous() if overlaps else seen[0].stride() == strides


def test_a_weight_that_waits_elsewhere_is_read_from_there():
    whole, spread = build("bert"), accelerate.cpu_offload(build("bert"), execution_device="cpu")
    name = "bert.encoder.layer.0.output.dense"
    module = spread.get_submodule(name)
    assert module.weight.is_meta
    assert torch.equal(value_of(module, "weight"), whole.get_submodule(name).weight)
    assert module.weight.is_meta
