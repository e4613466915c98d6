"""SmolLM2-135M-Instruct that reasons in soft tokens, on a laptop: word problems of two to four operations on one digit.

What it is for: the smallest way to thoughts of a pretrained Llama that its answers read.

- `text`: the results of the steps as text, a digit and the end of its line each.
- `curriculum`: each of the two tokens becomes a thought, the mean of all token embeddings by their probabilities
  (`thoughts.feedback = "vocabulary"`). A model that is certain of its text thinks the same, so nothing has to be learned for it:
  the short stage teaches the stop head where the thoughts end. Where the steps are not known, PPO teaches it the same
  (docs/results/pretrained.md, PPO in soft tokens).

What it reaches (docs/results/pretrained.md, 1,000 held-out questions, seed 0): 89.0 % in text, 88.6 % in thoughts before any
update of the second phase, 88.1 % after it; with thoughts of another question 12.1 %, without steps 36.7 %.

Cost: 8 GB and about 25 minutes of two CPU cores.

    python scripts/train.py --config configs/smollm2_digits.py --workdir runs/digits
    python scripts/eval.py --checkpoint runs/digits --thoughts steps --num_trajectories 0 --output digits.json
"""

from longshot_jax.config import extend


def get_config():
    config = extend("configs/smollm2_stories.py")
    config.phases = ("text", "curriculum")
    # The last position of the question predicts the first step; as a thought it is what it was as text.
    config.markers = "answer"

    config.data.operations = (2, 3, 4)
    config.data.largest_number = 9
    config.data.equations = False  # a step is a digit and the end of its line: two tokens, and so two thoughts
    config.data.length_bucket = 16
    config.data.batch_shapes = 2
    config.data.answer_length = 14

    text = config.text
    text.batch_size = 8
    text.micro_batch_size = 0
    text.max_steps = 300
    text.optimizer.learning_rate = 2e-4
    text.optimizer.warmup_steps = 20

    config.thoughts.feedback = "vocabulary"
    curriculum = config.curriculum
    curriculum.c_thought = 2
    curriculum.stages = (4,)
    curriculum.max_latent_stage = 4
    curriculum.uniform_prob = 0.0
    curriculum.batch_size = 8
    curriculum.micro_batch_size = 0
    curriculum.max_steps_per_stage = 60
    curriculum.question_hidden = 0.0
    curriculum.question_hidden_updates = 0
    curriculum.guidance.explanation = 0.0
    curriculum.guidance.stop = 0.1
    curriculum.optimizer.learning_rate = 2e-5
    curriculum.optimizer.warmup_steps = 10

    config.evaluation.every = 0
    config.evaluation.questions = 96
    config.evaluation.batch_size = 48
    return config
