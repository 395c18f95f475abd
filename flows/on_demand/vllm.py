"""A prompt as somebody needs it who asks a vLLM server without ptpipeline: tensor, token ids, client, instructions."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ptpipeline.errors import DataError
from ptpipeline.models.inputs import KeyValues
from ptpipeline.models.vocabulary import Vocabulary
from ptpipeline.prompts.artifact import Artifact
from ptpipeline.prompts.peft import AdapterBase
from ptpipeline.prompts.placement import place_prompt
from ptpipeline.prompts.tensors import unpack
from ptpipeline.serving.tokens import encode_labels
from ptpipeline.task.template import read_template

README = """\
# {task}, {digest} for vLLM

`embeddings.safetensors` holds `embeddings` [{count}, {width}]: what stands before each text. `client.py` embeds a text
with the base's own table, puts it behind the prompt, and sends both to vLLM's `/v1/completions` as `prompt_embeds`
(base64 of what `torch.save` writes). vLLM loads no prompt, and one server answers with any number of them.

    vllm serve {base}{revision} --enable-prompt-embeds
    python client.py http://127.0.0.1:8000 --model {base} "a text"

`client.py` needs torch, transformers and safetensors. Set VLLM_API_KEY if vLLM was started with `--api-key`.

- vLLM 0.26 or later; take the newest: who may send embeddings could crash older ones, and do more (CVE-2025-62164,
  CVE-2026-73557). Let only this client reach the server: vLLM's documents call the option one for trusted users.
- Serve the very files that this prompt was trained on: `manifest.json` states their fingerprint, and vLLM checks none.
- No penalties: with embeddings vLLM does not know the tokens that they are for, and on GPUs its engine was seen to die
  of it (vLLM issue 57719). `client.py` sends neutral ones: the base's `generation_config.json` may state others.
- `--logprobs-mode` stays at its default. `--max-model-len` is at least {context}.
- Labels cost one request of one token for each distinct beginning of a label; so a label of one token costs one. vLLM
  refuses `echo` and `prompt_logprobs` beside embeddings, so one request cannot tell more.
- vLLM computes in its own `--dtype` (`auto`: 16 bits): probabilities differ from `ptp predict` in the third digit.
"""


def build_vllm_files(vocabulary: Vocabulary, artifact: Artifact, base: AdapterBase) -> dict[str, bytes]:
    """Return the files of one prompt by name.

    Raises DataError for a prefix, and for a chat, whose control tokens `client.py` does not write.
    """
    manifest = artifact.manifest
    what = f"{manifest.task} {artifact.digest[:12]}"
    prompt = place_prompt(vocabulary, unpack(artifact, *vocabulary.known), manifest.placement)
    if isinstance(prompt, KeyValues):
        raise DataError(
            f"{what}: a prefix is keys and values, and vLLM takes embeddings only; export it with `--format npy`, or "
            "train with another method"
        )
    if manifest.chat is not None:
        raise DataError(
            f"{what}: its text is a chat, whose control tokens only ptpipeline tells from the words of a text; ask "
            "vLLM by `ptp serve --upstream URL`"
        )
    labels = encode_labels(vocabulary, manifest)
    limit = manifest.generate.max_new_tokens if manifest.generate else max(map(len, labels.ids), default=1)
    told: dict[str, Any] = {
        "base": base.name_or_path,
        "revision": base.revision,
        "template": [("$" if part.field else "=") + part.text for part in read_template(manifest).parts],
        "fields": read_template(manifest).names,
        "skip": int(manifest.placement == "after_bos"),
        "labels": dict(zip(labels.names, labels.ids, strict=True)),
        "normalised": labels.normalised,
        "content_free": labels.content_free,
        "max_input_tokens": manifest.max_input_tokens,
        "max_tokens": limit,
        "end_tokens": sorted(vocabulary.end_tokens),
    }
    readme = README.format(
        task=manifest.task,
        digest=artifact.digest[:12],
        count=len(prompt),
        width=prompt.shape[1],
        base=base.name_or_path,
        revision=f" --revision {base.revision}" if base.revision else "",
        context=len(prompt) + manifest.max_input_tokens + limit,
    )
    return {
        "embeddings.safetensors": save({"embeddings": prompt.contiguous()}),
        "vllm.json": json.dumps(told, indent=1).encode(),
        "client.py": Path(__file__).with_name("vllm_client.py").read_bytes(),
        "README.md": readme.encode(),
    }
