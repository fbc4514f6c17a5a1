"""Llama of transformers at the size of our language model: sampling with a KV cache, and training."""

import torch

from peers.measuring import millions, time_and_emit

PROMPT, NEW, TOP_K, VOCABULARY = 16, 256, 50, 8194
TRAIN_BATCH, TRAIN_LENGTH = 4, 512


def create(
    vocabulary: int = VOCABULARY, dim: int = 512, feed_forward_dim: int = 1408, layers: int = 8, heads: int = 8
) -> torch.nn.Module:
    """Returns a model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=dim,
            intermediate_size=feed_forward_dim,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )


def generate() -> None:
    """Measures `generate`."""
    from transformers import GenerationConfig

    model = create().eval()
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=TOP_K,
        top_p=1.0,
        max_new_tokens=NEW,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    for batch in (1, 8):
        prompt = torch.randint(2, VOCABULARY, (batch, PROMPT))
        mask = torch.ones_like(prompt)

        def sample() -> None:
            tokens = model.generate(prompt, attention_mask=mask, generation_config=config)
            assert tokens.shape == (batch, PROMPT + NEW), tokens.shape

        _emit_decoding(f"llama_generate_b{batch}", sample, batch, model, "transformers generate()")


def decode_loop() -> None:
    """Measures the same sampling without `generate`: the forward call with its KV cache, and top-k sampling."""
    from transformers import DynamicCache

    model = create().eval()
    for batch in (1, 8):
        prompt = torch.randint(2, VOCABULARY, (batch, PROMPT))

        @torch.inference_mode()
        def sample() -> None:
            cache, token = DynamicCache(config=model.config), prompt
            for _ in range(NEW):
                logits = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                best, index = logits[:, -1].topk(TOP_K)
                token = index.gather(1, torch.multinomial(best.softmax(-1), 1))
            assert cache.get_seq_length() == PROMPT + NEW - 1

        _emit_decoding(f"llama_decode_loop_b{batch}", sample, batch, model, "transformers forward, own loop")


def _emit_decoding(name: str, sample, batch: int, model: torch.nn.Module, implementation: str) -> None:
    time_and_emit(
        name, "tokens/s", sample, amount=batch * NEW, repeats=5, batch=batch, prompt=PROMPT, new_tokens=NEW,
        top_k=TOP_K, params_M=millions(model), impl=implementation,
    )  # fmt: skip


def train() -> None:
    """Measures a training step with AdamW."""
    model = create().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    tokens = torch.randint(2, VOCABULARY, (TRAIN_BATCH, TRAIN_LENGTH))

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        optimizer.step()

    time_and_emit(
        "llama_train", "tokens/s", step, amount=TRAIN_BATCH * TRAIN_LENGTH, repeats=7, batch=TRAIN_BATCH,
        length=TRAIN_LENGTH, params_M=millions(model), impl="transformers LlamaForCausalLM",
    )  # fmt: skip


MEASUREMENTS = {"llama_generate": generate, "llama_decode_loop": decode_loop, "llama_train": train}
