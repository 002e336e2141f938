"""Everything that the command line may import. A process with these imports forks children that start at once.

No thread runs after these imports: a fork would lose it.
"""

import astropy.io.fits
import astropy.io.votable
import astropy.table  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure
import matplotlib.font_manager  # noqa: F401
import obstore  # noqa: F401
import pyarrow.dataset  # noqa: F401
import torch

import skyclass.catalog.query
import skyclass.cli.main
import skyclass.engine.cluster
import skyclass.images.export
import skyclass.images.remote
import skyclass.mock
import skyclass.model.classifier
import skyclass.report
import skyclass.run.lease
import skyclass.run.pipeline
import skyclass.run.plan_report
import skyclass.training.data.dataset
import skyclass.training.evaluation.evaluate
import skyclass.training.fit.train
import skyclass.version

skyclass.version.code_version()  # parses all modules, once
torch.set_num_threads(1)
