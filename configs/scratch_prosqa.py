"""ProsQA with a Llama from scratch: which of two concepts is reachable in a graph of statements, on a laptop.

What it is for: to run the curriculum and PPO end to end on generated ProsQA (calibrated to the published files'
statistics) and to test on the published validation file. The model has 6 layers of width 384, 10.6 million parameters
besides the embeddings, and a byte-level BPE trained on the problems. Symbolic ProsQA takes hundreds of epochs from
scratch (COCONUT with two layers of width 768: 300 epochs at batch 256, 98 %). Here, with a few thousand small updates,
expect a falling loss and at best the accuracy of guessing between the two candidates (figures of one run:
docs/results/from_scratch.md).

Cost: 2,040 supervised updates and 2,000 of PPO; one to two hours on one CPU core.

    python scripts/train.py --config configs/scratch_prosqa.py \
        --config.data.test=prosqa/prosqa_valid.json --workdir runs/scratch_prosqa
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

    config.data.train = "prosqa"
    config.data.test = "prosqa/prosqa_valid.json"
    config.data.generated_train = 20_000
    config.data.tokenizer = "bpe"
    config.data.bpe_vocabulary = 512
    config.data.prompt_length = 384
    config.data.length_bucket = 64
    config.data.answer_length = 64

    curriculum = config.curriculum
    curriculum.stages = (0, 1, 2, 3, 4, 5)
    curriculum.max_latent_stage = 4
    curriculum.batch_size = 2  # so that two thousand updates take an hour
    curriculum.max_steps_per_stage = 340
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
    ppo.answer_length = 24  # one sentence
    ppo.gradient = "score"
    ppo.log_prob_scaling = "scaled"
    ppo.min_thoughts = 1
    ppo.max_thoughts = 6
    ppo.optimizer.learning_rate = 3e-5
    ppo.optimizer.navigator_learning_rate = 3e-4

    config.evaluation.every = 0
    config.evaluation.every_iterations = 0
    config.evaluation.questions = 64
    config.evaluation.batch_size = 32
    config.checkpoint.every = 300
    return config
