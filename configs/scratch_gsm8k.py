"""GSM8K in its equation form, with a Llama from scratch: the whole path on real data, on a laptop.

What it is for: to run the curriculum and PPO end to end on real questions without pretrained parameters. The model has
6 layers of width 384, 10.6 million parameters besides the embeddings, and a byte-level BPE of 2,048 tokens trained on
the questions, one token per digit. At this size and a few thousand updates arithmetic word problems are not learned:
expect a falling loss and an accuracy of a few per cent (figures of one run: docs/results/from_scratch.md).

Cost: 2,000 supervised updates and 2,000 of PPO; one to two hours on one CPU core.

    python scripts/train.py --config configs/scratch_gsm8k.py \
        --config.data.train=gsm8k_aug/train_no_aug.txt --config.data.validation=gsm8k_aug/valid.txt \
        --config.data.test=gsm8k_aug/test.txt --workdir runs/scratch_gsm8k
"""

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    config.markers = "answer"

    config.model.hidden_size = 384
    config.model.intermediate_size = 1024
    config.model.num_hidden_layers = 6
    config.model.num_attention_heads = 6
    config.model.rope_theta = 10_000.0

    config.data.train = "gsm8k_aug/train_no_aug.txt"
    config.data.validation = "gsm8k_aug/valid.txt"
    config.data.test = "gsm8k_aug/test.txt"
    config.data.tokenizer = "bpe"
    config.data.bpe_vocabulary = 2048
    config.data.prompt_length = 320  # the longest question of train and test has 308 tokens
    config.data.length_bucket = 80
    config.data.answer_length = 160

    curriculum = config.curriculum
    curriculum.stages = (0, 1, 2, 3, 4)
    curriculum.max_latent_stage = 3  # as COCONUT on GSM8K; stage 4 replaces all steps
    curriculum.c_thought = 1
    curriculum.batch_size = 2  # so that two thousand updates take an hour
    curriculum.max_steps_per_stage = 400
    curriculum.optimizer.learning_rate = 3e-4
    curriculum.optimizer.navigator_learning_rate = 3e-4
    curriculum.optimizer.warmup_steps = 50
    curriculum.optimizer.b2 = 0.95

    ppo = config.ppo
    ppo.iterations = 250
    ppo.questions = 4
    ppo.num_trajectories = 4
    ppo.epochs = 2
    ppo.minibatches = 4
    ppo.answer_length = 12  # a number
    ppo.gradient = "score"
    ppo.log_prob_scaling = "scaled"
    ppo.min_thoughts = 1
    ppo.max_thoughts = 4
    ppo.optimizer.learning_rate = 3e-5
    ppo.optimizer.navigator_learning_rate = 3e-4

    config.evaluation.every = 0
    config.evaluation.every_iterations = 0
    config.evaluation.questions = 64
    config.evaluation.batch_size = 32
    config.checkpoint.every = 300
    return config
