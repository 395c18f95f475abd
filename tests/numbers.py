"""A real tokenizer of texts of numbers, for random models: each number below 97 is its own token."""

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def number_tokenizer(begin: int | None = None, end: int | None = None) -> PreTrainedTokenizerFast:
    """Words that are no numbers have no tokens; `begin` and `end` stand around every input."""
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(97)}, unk_token="0"))
    tokenizer.normalizer = normalizers.Replace(Regex(r"(?<!\S)(?!\d+(?!\S))\S+"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = [str(token) for token in (begin, end) if token is not None]
    if around:
        form = " ".join(filter(None, [begin is not None and f"{begin}", "$A", end is not None and f"{end}"]))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=form, special_tokens=[(name, int(name)) for name in around]
        )
    roles = {"bos_token": begin, "eos_token": end}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{role: str(token) for role, token in roles.items() if token is not None}
    )
