"""The built-in head: sculpted, meshed and animated by this package's own code, no download."""

from facejax.models.generic.expressions import ARKIT_NAMES as ARKIT_NAMES
from facejax.models.generic.head import generic_head as generic_head
