r"""Two independent chains of three operations at once: a trajectory for each, three thoughts, and one joined answer.

What it is for: the smallest task that trajectories can share. Two chains of three operations are six thoughts in sequence for
one trajectory, and three for two with roles. One trajectory reaches the same if it is taught chain by chain, with several times the
updates (three chains, one seed).

What it reaches (docs/results/parallel.md): 98.6 to 99.9 % of 2,000 held-out questions with both results right over five seeds, after 2,725 to
3,928 updates. With all thoughts replaced both results are right in about 1 %, with one trajectory's replaced in about
10 % or less, which is chance. With `last_stage_loss` 0.02, they reached 94.2 to 99.3 % after 1,807 to 2,443 updates: the last
stage then may end while its running loss, which swings, is not low for good. Three chains with three trajectories: 94.2 to 99.6 %,
five with five: 96.0 to 99.1 %, over five seeds each.

PPO from a curriculum that never shows the last step as a thought, from rewards alone: from 70.0 to 97.9 %, from 57.8 to 100.0 %
and from 91.3 to 99.9 % (three seeds).

Cost: 174,400 to 251,392 sequences; 7 to 12 minutes on one CPU core. PPO: 25,600 questions, 2 to 6 minutes.

    python scripts/train.py --config configs/threads.py
    python scripts/eval.py --checkpoint runs/threads --num_trajectories 0 --output threads.json

    python scripts/train.py --config configs/threads.py --workdir runs/threads_unfinished --config.curriculum.stages="(0, 1, 2)" \
        --config.curriculum.uniform_prob=0 --config.curriculum.last_stage_loss=0.02
    python scripts/train.py --config configs/threads.py --workdir runs/threads_ppo --config.phases=ppo \
        --config.initialize_from=runs/threads_unfinished
"""

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    config.phases = ("curriculum",)
    config.markers = "answer"

    config.model.hidden_size = 64
    config.model.intermediate_size = 128
    config.model.num_hidden_layers = 2
    config.model.num_attention_heads = 4
    config.model.rope_theta = 10_000.0

    config.data.train = "threads"
    config.data.test = "threads"
    config.data.tokenizer = "threads"
    config.data.threads = (2,)
    config.data.operations = (3,)
    config.data.prompt_length = 40  # K (5 L + 5)
    config.data.answer_length = 5  # K digits with commas between, marker and end

    config.thoughts.feedback = "hidden"
    config.thoughts.normalised = True
    config.thoughts.reasoning_dim = 64
    config.thoughts.roles = 2
    config.thoughts.join = True

    curriculum = config.curriculum
    curriculum.stages = (0, 1, 2, 3)
    curriculum.max_latent_stage = 3
    curriculum.uniform_prob = 0.15
    curriculum.batch_size = 64
    curriculum.stage_loss = 0.03  # nats per token
    curriculum.last_stage_loss = 0.01
    curriculum.max_steps_per_stage = 3000
    curriculum.optimizer.learning_rate = 2e-3
    curriculum.optimizer.navigator_learning_rate = 2e-3
    curriculum.optimizer.b2 = 0.98

    ppo = config.ppo
    ppo.iterations = 200
    ppo.questions = 128
    ppo.num_trajectories = 2
    ppo.minibatches = 2
    # All trajectories of a question share one answer and its reward, so there is nothing to compare but the critic's
    # expectation. It knows nothing at first: without whitening, and at thrice the rate, accuracy fell from 73 to 43 %.
    ppo.gradient = "pathwise"
    ppo.gae_lambda = 1.0
    ppo.entropy_coefficient = 0.0
    ppo.kl_coefficient = 0.0
    ppo.min_thoughts = 3
    ppo.max_thoughts = 3
    ppo.optimizer.learning_rate = 3e-4
    ppo.optimizer.navigator_learning_rate = 2e-3
    ppo.optimizer.schedule = "linear"
    ppo.optimizer.b2 = 0.98

    config.data.generated_test = 2000
    config.evaluation.questions = 1000
    config.evaluation.batch_size = 500
    config.evaluation.every = 500
    config.evaluation.every_iterations = 40
    config.checkpoint.every = 500
    return config
