"""The demonstration's task from scratch: chains of one to four operations modulo 10, curriculum and then PPO.

What it is for: the whole method in minutes on a laptop, and a starting point for single changes.

What it reaches (figures: README.md, docs/results.md): the curriculum ends on purpose when the first two of up to four
steps are thoughts (one in fifty chains of four had more); chains of four are then 50 to 80 % correct. PPO reaches 95 %
and more, and learns when to stop from rewards alone: the number of thoughts becomes the number of operations, which no
reward mentions.

Cost: about four minutes on two CPU cores.

    python scripts/train.py --config configs/tiny.py
"""

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    # No markers around thoughts: the position that predicts step 1 as text is the one that becomes thought 1.
    config.markers = "answer"

    config.model.hidden_size = 64
    config.model.intermediate_size = 128
    config.model.num_hidden_layers = 2
    config.model.num_attention_heads = 4
    config.model.rope_theta = 10_000.0  # prompts have 26 tokens, so lower frequencies are useless

    config.data.train = "chains"
    config.data.test = "chains"
    config.data.tokenizer = "chains"
    config.data.operations = (1, 2, 3, 4)
    config.data.prompt_length = 26
    config.data.answer_length = 8

    config.thoughts.feedback = "hidden"
    config.thoughts.reasoning_dim = 64
    config.thoughts.stop_bias = -1.0  # stops with probability 1/4; at much less, stopping is not explored

    curriculum = config.curriculum
    curriculum.stages = (0, 1, 2)
    curriculum.max_latent_stage = 4
    # One problem in twenty has a random stage: without it, accuracy with four thoughts varies a lot between seeds.
    curriculum.uniform_prob = 0.05
    curriculum.batch_size = 64
    curriculum.stage_loss = 0.03  # nats per token
    curriculum.last_stage_loss = 0.08  # unfinished on purpose
    curriculum.max_steps_per_stage = 3000
    curriculum.optimizer.learning_rate = 2e-3
    curriculum.optimizer.navigator_learning_rate = 2e-3
    curriculum.optimizer.b2 = 0.98

    ppo = config.ppo
    ppo.iterations = 400
    ppo.questions = 32
    ppo.num_trajectories = 8
    ppo.epochs = 2
    ppo.minibatches = 2
    # The strongest gradient through a thought when rewards are the only signal.
    ppo.gradient = "pathwise"
    ppo.thought_std = (0.2, 0.2)
    ppo.baseline = "leave_one_out"
    ppo.whiten = False
    ppo.gae_lambda = 1.0
    ppo.entropy_coefficient = 0.0
    ppo.kl_coefficient = 0.0  # the model knows only this task, so there is nothing to stay close to
    ppo.min_thoughts = 0
    ppo.max_thoughts = 6
    ppo.rewards.correct = 1.0
    ppo.rewards.thought_cost = 0.02
    ppo.optimizer.learning_rate = 3e-4
    ppo.optimizer.navigator_learning_rate = 2e-3
    ppo.optimizer.schedule = "linear"
    ppo.optimizer.b2 = 0.98

    # Enough questions to choose the best checkpoint by accuracy and not by chance.
    config.data.generated_test = 2000
    config.evaluation.questions = 2000
    config.evaluation.batch_size = 500
    config.evaluation.every = 1000
    config.evaluation.every_iterations = 40
    config.checkpoint.every = 500
    return config
