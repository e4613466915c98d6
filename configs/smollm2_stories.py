"""SmolLM2-135M-Instruct that reasons in thoughts: word problems of one to three operations, on one GPU or, slowly, a laptop.

What it is for: the whole path of a pretrained Llama in one resumable run, and the starting point of the other recipes.

- `text`: equations in text. A model that gets steps wrong in writing has nothing to put into thoughts.
- `curriculum`: from the first step on, steps become two thoughts each. Each thought must explain its step
  (`guidance.explanation`), and once all steps are thoughts, the answer to half of the problems, falling to none, sees the
  thoughts alone (`question_hidden`): otherwise short problems are answered from the question, and thoughts stay unread.
- `ppo`: rewards alone, with the gradient through the thoughts (`pathwise`), which needs few trajectories.

What it reaches (docs/results/pretrained.md, one seed, 1,000 held-out questions): `text` answers 93.2 %. The thoughts do not work yet: after
stages of 234 updates, 45,000 sequences in all, 42.3 % are right, as many as with other questions' thoughts (38.0 %), with pause
tokens (41.7 %) and without any steps (40.4 %); 120 iterations of PPO change nothing. The loss of explaining a
step from its thoughts was still falling at the end, so a stage below has 800 updates. Such a run was not made.

Cost: about 200,000 sequences in the supervised phases. On one H200 `text` took one minute, and the short stages six beside other runs. Two CPU cores do 1.2 to
1.9 sequences a second in less than 8 GB: eight hours for `text` alone, about two days for all. On a GPU add
`--config.model.compute_dtype=bfloat16 --config.model.remat=True --config.text.micro_batch_size=0
--config.curriculum.micro_batch_size=0 --config.ppo.micro_batches=1`.

    python scripts/train.py --config configs/smollm2_stories.py --workdir runs/stories
    python scripts/train.py --config configs/smollm2_stories.py --config.model.source=/models/SmolLM2-135M-Instruct
"""

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    config.phases = ("text", "curriculum", "ppo")

    config.model.source = "HuggingFaceTB/SmolLM2-135M-Instruct"  # or any local directory

    config.data.train = "stories"
    config.data.test = "stories"
    config.data.operations = (1, 2, 3)
    config.data.tokenizer = "model"
    config.data.chat_template = "minimal"  # its own adds 31 tokens to every question
    config.data.prompt_length = 96
    config.data.length_bucket = 32
    config.data.batch_shapes = 4  # one compilation each
    config.data.answer_length = 48

    text = config.text
    text.batch_size = 64
    text.micro_batch_size = 8  # memory of a laptop
    text.max_steps = 700
    text.optimizer.learning_rate = 3e-4
    text.optimizer.schedule = "linear"
    text.optimizer.warmup_steps = 50
    text.optimizer.b2 = 0.98

    curriculum = config.curriculum
    curriculum.stages = (1, 2, 3)
    curriculum.max_latent_stage = 3
    curriculum.c_thought = 2  # as COCONUT on GSM8K
    curriculum.uniform_prob = 0.1  # of other stages, so that none is forgotten
    curriculum.batch_size = 64
    curriculum.micro_batch_size = 8
    curriculum.max_steps_per_stage = 800
    curriculum.question_hidden = 0.5
    curriculum.question_hidden_updates = 1600  # the last stage sees the question
    curriculum.guidance.explanation = 1.0
    curriculum.optimizer.learning_rate = 2e-4
    curriculum.optimizer.navigator_learning_rate = 4e-4
    curriculum.optimizer.warmup_steps = 25  # of every stage
    curriculum.optimizer.b2 = 0.98

    ppo = config.ppo
    ppo.iterations = 120
    ppo.questions = 64
    ppo.num_trajectories = 4
    ppo.epochs = 1
    ppo.minibatches = 1
    ppo.micro_batches = 16
    ppo.gradient = "pathwise"
    ppo.thought_std = (0.1, 0.1)  # relative to the rms of noise-free thoughts
    ppo.baseline = "leave_one_out"
    ppo.whiten = False
    ppo.gae_lambda = 1.0
    ppo.entropy_coefficient = 0.0
    ppo.kl_coefficient = 0.0  # no second copy of the weights
    ppo.max_thoughts = 6
    ppo.answer_length = 12
    ppo.optimizer.learning_rate = 1e-5
    ppo.optimizer.navigator_learning_rate = 2e-4
    ppo.optimizer.schedule = "linear"
    ppo.optimizer.warmup_steps = 10

    config.evaluation.every = 500
    config.evaluation.every_iterations = 50
    config.evaluation.questions = 500
    config.evaluation.batch_size = 50
    config.checkpoint.every = 100
    config.checkpoint.keep_last = 1  # 1.6 GB each
    return config
