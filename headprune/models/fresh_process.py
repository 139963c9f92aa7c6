"""Load a saved directory as a stranger would: a new process, plain transformers, headprune not importable.

Run by path with one argument, a JSON file: directory, auto_class, trust_remote_code, inputs, outputs, threads, device_map, texts.
Writes the first output of the model to ``outputs`` and prints as JSON what loading complained of, and the token ids of ``texts``.
With all on ``meta`` nothing is run: names and shapes are compared, no number is read.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Do the job named on the command line."""
    sys.modules["headprune"] = None  # type: ignore[assignment]  # any import of it fails from here on
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    placed = job["device_map"]
    model, info = getattr(transformers, job["auto_class"]).from_pretrained(
        job["directory"],
        trust_remote_code=job["trust_remote_code"],
        output_loading_info=True,
        local_files_only=True,
        attn_implementation=job["attn_implementation"],
        # The CPU is where weights come anyway; elsewhere they go straight to where they belong.
        **({} if set(placed.values()) == {"cpu"} else {"device_map": placed}),
        **({"offload_folder": job["offload"]} if "disk" in placed.values() else {}),
    )
    if "meta" not in placed.values():
        model = model.eval()
        for tensor in (*model.parameters(), *model.buffers()):
            # Of weights that lie where the file has put them, products may round otherwise than of those in memory of their own.
            if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()
        device = next((name for name in placed.values() if name not in ("cpu", "disk")), "cpu")
        inputs = load_file(job["inputs"])
        inputs = {name: value.clone().to(device) for name, value in inputs.items()}
        with torch.no_grad():
            output = model(**inputs)[0]
        save_file({"output": output.cpu().contiguous()}, job["outputs"])
    complaints = {name: sorted(map(str, found)) for name, found in info.items() if found}
    ids = _token_ids(job) if job["texts"] else []
    print(json.dumps({"complaints": complaints, "token_ids": ids}))


def _token_ids(job: dict[str, Any]) -> list[list[int]]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        job["directory"], trust_remote_code=job["trust_remote_code"], local_files_only=True
    )
    return [[int(token) for token in tokenizer(text)["input_ids"]] for text in job["texts"]]


if __name__ == "__main__":
    main()
