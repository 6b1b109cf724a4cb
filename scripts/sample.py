"""Make preference pairs of a model's own answers: K answers a prompt, scored, the best against the worst.

python scripts/sample.py policy=smollm2_135m data=constraints
python scripts/sample.py policy=RUN data=local data.train=prompts.jsonl scorer=judge judge=openai
python scripts/sample.py generator=openai generator.base_url=... generator.model=... scorer=reward_model scorer.path=...
"""

from typing import Any

from sgdpo.console import expected_failures, fail, hydra_command, run_command, set_up_process


@expected_failures()
def main(config: Any) -> None:
    """Do one composed sampling."""
    set_up_process()
    from lab.evaluation.settings import absent
    from lab.sampling.sample import folder_word, prompt_errors, sample, show
    from lab.sampling.settings import sample_errors, to_sample_config

    sampling = to_sample_config(config)
    if errors := sample_errors(sampling) or absent(sampling) or prompt_errors(sampling):
        fail(errors)

    with expected_failures(code=1):
        folder = sample(sampling)
        print(show(folder).console())
        print(f"pairs     {folder}\ntrain     python src/train.py data=sampled {folder_word(folder)}")


if __name__ == "__main__":
    run_command(
        hydra_command("sample", __doc__, main, schema="lab.sampling.settings.SampleConfig"),
        stopped="the same command continues: what was answered and scored is kept",
    )
