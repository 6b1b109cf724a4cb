"""The reference's per-token log-probs of a data set: computed once, kept on disk, looked up by example id."""

from sgdpo.reference.fill import Work, reference_key, reference_table
from sgdpo.reference.table import ReferenceTable
