"""The real worker, in whose run one pair's reference log-probs are not numbers."""

import numpy as np

from sgdpo.runs import worker

POSITION = 9  # of the poisoned pair among the training pairs


def main() -> None:
    from sgdpo.training.trainer import PairTrainer

    train = PairTrainer.train

    def train_poisoned(self: PairTrainer, *args, **kwargs):
        lookup, bad = self.data_collator.references, int(self.train_dataset.ids[POSITION])

        def poisoned(example_id: int):
            chosen, rejected = lookup(example_id)
            return (chosen * np.nan, rejected) if example_id == bad else (chosen, rejected)

        self.data_collator.references = poisoned
        return train(self, *args, **kwargs)

    PairTrainer.train = train_poisoned
    worker.main()


if __name__ == "__main__":
    main()
