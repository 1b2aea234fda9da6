"""Makes a small model with random weights and a tokenizer of its own: enough for a real engine to do real work.

    python make_model.py FOLDER [--hidden 64] [--layers 2 | --like-7b] [--words 1024] [--text FILE ...]

Its tokenizer learns so many words from the text of the files, or from three sentences of its own. With `--like-7b`
only the configuration of a 7B model is written: vLLM makes the weights up (`--load-format dummy`).
To be run with the Python of the environment that vLLM is installed in.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

END, PAD = "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = [
    "SELECT name, count(*) AS n FROM orders JOIN customers USING (customer_id) WHERE region = 'north' GROUP BY name",
    "You write SQL for the schema below. Answer with one statement. The tables are: orders, customers, products.",
    'The statement failed: column not found. Repair it. Question: which region sells most? {"sql": "SELECT 1"}',
]


def main(chosen: argparse.Namespace) -> None:
    """Write configuration, weights and tokenizer into the folder."""
    fast = tokenizer([file.read_text() for file in chosen.text] or TEXT, chosen.words)
    fast.save_pretrained(chosen.folder)
    config = like_7b() if chosen.like_7b else small(chosen.hidden, chosen.layers, len(fast))
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, fast.eos_token_id, fast.pad_token_id
    if chosen.like_7b:
        config.save_pretrained(chosen.folder)
        return
    set_seed(0)
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(chosen.folder)
    sys.stdout.write(f"{sum(values.numel() for values in model.parameters()):,} parameters in {chosen.folder}\n")


def tokenizer(texts: Sequence[str], words: int) -> PreTrainedTokenizerFast:
    """A byte-level one, trained on the spot."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=[PAD, "<|im_start|>", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, pad_token=PAD, chat_template=TEMPLATE)


def small(hidden: int, layers: int, vocabulary: int) -> Qwen2Config:
    heads = max(1, hidden // 32)
    return Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )


def like_7b() -> Qwen2Config:
    """The shape of Qwen2.5-7B."""
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--like-7b", action="store_true")
    parser.add_argument("--words", type=int, default=1024)
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    main(parser.parse_args())
