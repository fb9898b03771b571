"""A data set with a bug that shows only in loader processes, in a module that can be imported without torch."""

import sys

from mvlm.data.samples.pairs import PairDataset


class Broken(PairDataset):
    def describe(self, *arguments):
        if "torch" not in sys.modules:
            raise KeyError("a bug")
        return super().describe(*arguments)
