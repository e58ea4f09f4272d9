"""lerobot's policy type "tendon": a π0 or π0.5 checkpoint, run by the tendon engine. Importing this
package registers it; lerobot's commands do so by themselves."""
from .configuration_tendon import TendonConfig
from .modeling_tendon import TendonPolicy
from .processor_tendon import make_tendon_pre_post_processors

__all__ = ["TendonConfig", "TendonPolicy", "make_tendon_pre_post_processors"]
