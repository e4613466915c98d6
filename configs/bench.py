"""The shape of the speed comparison: a Llama of 4 layers and width 256, on 16 questions of 64 tokens.

What it is for: `scripts/bench.py`. Parameters are random and nothing is learned; the data settings only set lengths.

What it should reach: the table in docs/performance.md.

Cost: minutes on two CPU cores.

    python scripts/bench.py --config configs/bench.py --output bench.json
"""

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    config.model.hidden_size = 256
    config.model.intermediate_size = 688
    config.model.num_hidden_layers = 4
    config.model.num_attention_heads = 8
    config.model.num_key_value_heads = 4

    config.data.tokenizer = "bpe"
    config.data.bpe_vocabulary = 512
    config.data.prompt_length = 64
    config.data.answer_length = 32

    config.curriculum.batch_size = 16
    config.curriculum.max_latent_stage = 6
    config.curriculum.stages = (0, 1, 2, 3, 4, 5, 6)

    ppo = config.ppo
    ppo.questions = 16
    ppo.num_trajectories = 1
    ppo.epochs = 1
    ppo.minibatches = 1
    ppo.kl_coefficient = 0.0  # the update without a reference policy
    ppo.max_thoughts = 6
    return config
