"""Asks a vLLM server with the soft prompt beside this file: `python client.py http://gpu:8000 "a text" ...`

It needs torch, transformers and safetensors, and nothing of ptpipeline; README.md beside it says how vLLM is started.
A text is the field of the template, or a JSON object of its fields. Each answer is a line of JSON.
"""

import argparse
import base64
import io
import json
import math
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

NEUTRAL = {  # a penalty beside embeddings may end vLLM's engine, and generation_config.json may state one
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "top_k": 0,
    "min_p": 0.0,
}


class Client:
    """The prompt, the base's tokenizer and embeddings, and the server."""

    def __init__(self, folder: Path, url: str, model: str, base: str | None) -> None:
        self.task: dict[str, Any] = json.loads((folder / "vllm.json").read_text())
        self.prompt = load_file(folder / "embeddings.safetensors")["embeddings"]  # [P, H]
        self.url, self.model = url.rstrip("/").removesuffix("/v1"), model
        name, revision = base or self.task["base"], None if base else self.task["revision"]
        config = AutoConfig.from_pretrained(name, revision=revision)
        text = config.get_text_config()
        text.num_hidden_layers = 0  # the embeddings are all that is read of the base
        if getattr(text, "layer_types", None) is not None:
            text.layer_types = []
        whole = AutoModelForCausalLM.from_pretrained(name, revision=revision, config=config, dtype="auto")
        self.embedding = whole.get_input_embeddings()
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)

    def answer(self, fields: dict[str, str]) -> dict[str, Any]:
        """Return the probability of each label, or the text."""
        ids = self.encode("".join(fields[part[1:]] if part[0] == "$" else part[1:] for part in self.task["template"]))
        if not self.task["labels"]:
            options = {"max_tokens": self.task["max_tokens"], "temperature": 0.0}
            told = self.ask(ids, {**options, "stop_token_ids": self.task["end_tokens"]})
            return {"text": told["choices"][0]["text"].strip()}
        scores = self.score(ids)
        if self.task["content_free"]:
            free = torch.stack([self.score(one).log_softmax(0) for one in self.task["content_free"]])
            scores -= free.logsumexp(0) - math.log(len(free))
        return {"probabilities": dict(zip(self.task["labels"], scores.softmax(0).tolist(), strict=True))}

    def encode(self, text: str) -> list[int]:
        """Return the text's token ids; no text is read as a control token."""
        ids: list[int] = self.tokenizer(text, split_special_tokens=True)["input_ids"]
        ids = ids[self.task["skip"] :]  # BOS, if it stands before the prompt
        if not 0 < len(ids) <= self.task["max_input_tokens"]:
            raise SystemExit(f"the text has {len(ids)} tokens; 1 to {self.task['max_input_tokens']} fit")
        return ids

    def score(self, ids: list[int]) -> torch.Tensor:
        """Return the log-likelihood of every label [labels]: vLLM is asked once for each beginning of a label."""
        labels, told = self.task["labels"].values(), dict[tuple[int, ...], dict[str, float]]()
        for begin in {tuple(tokens[:place]) for tokens in labels for place in range(len(tokens))}:
            following = sorted({tokens[len(begin)] for tokens in labels if tuple(tokens[: len(begin)]) == begin})
            for start in range(0, len(following), 128):  # the most that a request may name
                part = following[start : start + 128]
                options: dict[str, Any] = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "logprobs": len(part)}
                options |= {"logprob_token_ids": part, "return_tokens_as_token_ids": True}
                answer = self.ask([*ids, *begin], options)
                told.setdefault(begin, {}).update(answer["choices"][0]["logprobs"]["top_logprobs"][0])
        sums = [
            sum(told[tuple(tokens[:place])][f"token_id:{token}"] for place, token in enumerate(tokens))
            for tokens in labels
        ]
        counts = [len(tokens) if self.task["normalised"] else 1 for tokens in labels]
        return torch.tensor(sums) / torch.tensor(counts)

    def ask(self, ids: list[int], options: dict[str, Any]) -> dict[str, Any]:
        """Send prompt and embedded text to vLLM's completions."""
        buffer = io.BytesIO()
        torch.save(torch.cat([self.prompt, self.embedding(torch.tensor(ids)).detach()]), buffer)
        body = {
            "model": self.model,
            "prompt_embeds": base64.b64encode(buffer.getvalue()).decode(),
            **NEUTRAL,
            **options,
        }
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode(), headers)  # noqa: S310
        key = f"Bearer {os.environ.get('VLLM_API_KEY', '')}"
        request.add_unredirected_header("Authorization", key)  # not for whomever the server refers to
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310 - whoever runs this names the server
                told: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            words = error.read(1000).decode(errors="replace")
            hint = "; set VLLM_API_KEY to the --api-key of vLLM" if error.code == 401 else ""
            sys.exit(f"error: {self.url} answers {error.code}: {words}{hint}")
        except OSError as error:
            reason = getattr(error, "reason", error)
            sys.exit(f"error: {self.url} does not answer ({reason}); expected the address of vLLM")
        return told


def main() -> None:
    """Answer the texts of the command line."""
    logging.set_verbosity_error()  # transformers would list the layers that are left out
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="the address of vLLM, such as http://gpu:8000")
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--model", required=True, help="the name of the base in vLLM")
    parser.add_argument("--base", help="folder or hub id of the base, if it is not where vllm.json says")
    given = parser.parse_args()
    client = Client(Path(__file__).parent, given.url, given.model, given.base)
    for text in given.texts:
        fields = json.loads(text) if len(client.task["fields"]) > 1 else {client.task["fields"][0]: text}
        print(json.dumps(client.answer(fields)))


if __name__ == "__main__":
    main()
