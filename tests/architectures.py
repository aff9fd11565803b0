"""Tiny models of many architectures, for the tests of scoring."""

V = 67
SMALL = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
ARCHITECTURES = {
    "llama": SMALL,
    "qwen2": SMALL,
    "qwen3": SMALL,
    "mistral": SMALL,
    "gpt_neox": SMALL,
    "phi": SMALL,
    "olmo2": SMALL,
    "gemma2": SMALL,
    "gemma3_text": SMALL,
    "cohere": SMALL,
    "granite": {**SMALL, "logits_scaling": 3.0},
    "gpt2": {
        "vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "opt": {
        "vocab_size": V, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "word_embed_proj_dim": 16, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
        "pad_token_id": 2,
    },
    "mamba": {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 2},
}  # fmt: skip


def model_of(name, options=None):
    """A model of type ``name`` with two layers, and weights larger than at initialisation, so that its
    predictions are far from uniform."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(name, **(ARCHITECTURES[name] if options is None else options))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model
