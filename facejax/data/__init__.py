"""What comes from files and goes to them: heads, videos, landmarks, light, captures, checkpoints, results."""

from typing import TYPE_CHECKING

from facejax._lazy import lazy_names

if TYPE_CHECKING:
    from facejax.data.assets import asset_path, list_assets
    from facejax.data.captures import Capture, Entry, LightStage, View, head_to_camera, select
    from facejax.data.checkpoints import find_checkpoint, read_manifest, read_network
    from facejax.data.environments import load_environment, load_sh, resize_environment, save_environment
    from facejax.data.gltf import write_glb
    from facejax.data.goliath import LightPatterns, goliath_light_codes, read_light_patterns
    from facejax.data.heads import load_avatar, load_head, load_model, resolve_head
    from facejax.data.heads.model_file import read_head, save_head
    from facejax.data.landmarks import Landmarks, detect_landmarks, load_landmarks, save_landmarks
    from facejax.data.meshes import read_mesh, write_mesh
    from facejax.data.multiface import Choice, Multiface, open_capture
    from facejax.data.photos import open_photos
    from facejax.data.results import TrackResult
    from facejax.data.sources import RecordFolder, Source, write_records
    from facejax.data.video import Masks, Video, load_masks, open_video, write_video
    from facejax.data.weights import load_torchvision, read_tensors

__all__ = [
    "Capture",
    "Choice",
    "Entry",
    "Landmarks",
    "LightPatterns",
    "LightStage",
    "Masks",
    "Multiface",
    "RecordFolder",
    "Source",
    "TrackResult",
    "Video",
    "View",
    "asset_path",
    "detect_landmarks",
    "find_checkpoint",
    "goliath_light_codes",
    "head_to_camera",
    "list_assets",
    "load_avatar",
    "load_environment",
    "load_head",
    "load_landmarks",
    "load_masks",
    "load_model",
    "load_sh",
    "load_torchvision",
    "open_capture",
    "open_photos",
    "open_video",
    "read_head",
    "read_light_patterns",
    "read_manifest",
    "read_mesh",
    "read_network",
    "read_tensors",
    "resize_environment",
    "resolve_head",
    "save_environment",
    "save_head",
    "save_landmarks",
    "select",
    "write_glb",
    "write_mesh",
    "write_records",
    "write_video",
]

__getattr__, __dir__ = lazy_names(__name__)
