"""Saving pictures, videos, meshes and data below a trial's `save` folder.

Methods whose name ends in `image_` return BGR uint8 [H W 3], which is what OpenCV writes (and
what extensions expect); how they are drawn stands in drawing.py. OpenCV and trimesh are imported
when they are first needed.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from threestudio.utils import drawing, wavefront


class SaverMixin:
    _save_dir: str | None = None
    _wandb_logger: Any = None

    DEFAULT_RGB_KWARGS = {"data_format": "HWC", "data_range": (0, 1)}  # noqa: RUF012
    DEFAULT_UV_KWARGS = {"data_format": "HWC", "data_range": (0, 1), "cmap": "checkerboard"}  # noqa: RUF012
    DEFAULT_GRAYSCALE_KWARGS = {"data_range": None, "cmap": "jet"}  # noqa: RUF012
    DEFAULT_GRID_KWARGS = {"align": "max"}  # noqa: RUF012

    # folders and loggers

    def set_save_dir(self, save_dir: str) -> None:
        self._save_dir = save_dir

    def get_save_dir(self) -> str:
        if self._save_dir is None:
            raise ValueError("There is no folder to save to: call set_save_dir first.")
        return self._save_dir

    def get_save_path(self, filename: str) -> str:
        """The file's path below the save folder; makes the folders above it."""
        path = os.path.join(self.get_save_dir(), filename)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def create_loggers(self, cfg_loggers: Mapping) -> None:
        """`loggers.wandb: {enable, project, name}` makes a Weights & Biases logger."""
        wandb = cfg_loggers.get("wandb")
        if wandb and wandb.get("enable"):
            from pytorch_lightning.loggers import WandbLogger

            self._wandb_logger = WandbLogger(project=wandb.get("project"), name=wandb.get("name"))

    def get_loggers(self) -> list:
        return [] if self._wandb_logger is None else [self._wandb_logger]

    def _log_media(self, path: str, name: str | None, step: int | None) -> str:
        """Shows a saved picture or video in Weights & Biases too, if it has a name there."""
        if name and self._wandb_logger is not None:
            import wandb  # pyright: ignore[reportMissingImports]  (an extra of the person's)

            video = path.endswith((".mp4", ".gif"))
            media = wandb.Video(path) if video else wandb.Image(path)
            wandb.log({name: media, "trainer/global_step": step})
        return path

    def convert_data(self, data: Any) -> Any:
        """Tensors as arrays, also inside lists and dicts."""
        if data is None or isinstance(data, np.ndarray):
            return data
        if isinstance(data, torch.Tensor):
            data = data.detach().cpu()
            return (data.float() if data.dtype == torch.bfloat16 else data).numpy()
        if isinstance(data, (list, tuple)):
            return [self.convert_data(d) for d in data]
        if isinstance(data, dict):
            return {k: self.convert_data(v) for k, v in data.items()}
        raise TypeError(
            f"Can save tensors, arrays, lists and dicts of them, not {type(data).__name__}."
        )

    # pictures

    def get_rgb_image_(self, img, data_format, data_range, rgba=False) -> np.ndarray:
        return drawing.rgb(self.convert_data(img), data_format, data_range, rgba)

    def get_uv_image_(self, img, data_format, data_range, cmap) -> np.ndarray:
        return drawing.uv(self.convert_data(img), data_format, data_range, cmap)

    def get_grayscale_image_(self, img, data_range, cmap) -> np.ndarray:
        return drawing.grayscale(self.convert_data(img), data_range, cmap)

    def get_image_grid_(self, imgs, align) -> np.ndarray:
        """A row of {"type": rgb | uv | grayscale, "img", "kwargs"}, or a list of rows."""
        if isinstance(imgs[0], list):
            return np.concatenate([self.get_image_grid_(row, align) for row in imgs], axis=0)
        kinds = {
            "rgb": (self.get_rgb_image_, self.DEFAULT_RGB_KWARGS),
            "uv": (self.get_uv_image_, self.DEFAULT_UV_KWARGS),
            "grayscale": (self.get_grayscale_image_, self.DEFAULT_GRAYSCALE_KWARGS),
        }
        columns = []
        for column in imgs:
            if column["type"] not in kinds:
                raise ValueError(
                    f"A picture's type should be rgb, uv or grayscale, not {column['type']!r}."
                )
            draw, defaults = kinds[column["type"]]
            columns.append(draw(column["img"], **{**defaults, **column.get("kwargs", {})}))
        return drawing.beside(columns, align)

    def _write_picture(self, path: str, bgr: np.ndarray) -> str:
        import cv2

        if not cv2.imwrite(path, bgr):
            raise OSError(f"Cannot write the picture {path!r}.")
        return path

    def save_rgb_image(
        self,
        filename,
        img,
        data_format=DEFAULT_RGB_KWARGS["data_format"],
        data_range=DEFAULT_RGB_KWARGS["data_range"],
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        picture = self.get_rgb_image_(img, data_format, data_range)
        return self._log_media(
            self._write_picture(self.get_save_path(filename), picture), name, step
        )

    def save_uv_image(
        self,
        filename,
        img,
        data_format=DEFAULT_UV_KWARGS["data_format"],
        data_range=DEFAULT_UV_KWARGS["data_range"],
        cmap=DEFAULT_UV_KWARGS["cmap"],
    ) -> str:
        picture = self.get_uv_image_(img, data_format, data_range, cmap)
        return self._write_picture(self.get_save_path(filename), picture)

    def save_grayscale_image(
        self,
        filename,
        img,
        data_range=DEFAULT_GRAYSCALE_KWARGS["data_range"],
        cmap=DEFAULT_GRAYSCALE_KWARGS["cmap"],
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        picture = self.get_grayscale_image_(img, data_range, cmap)
        return self._log_media(
            self._write_picture(self.get_save_path(filename), picture), name, step
        )

    def save_image_grid(
        self,
        filename,
        imgs,
        align=DEFAULT_GRID_KWARGS["align"],
        name: str | None = None,
        step: int | None = None,
        texts: list | None = None,
    ) -> str:
        """Pictures beside each other; texts are written on it, evenly from top to bottom."""
        picture = self.get_image_grid_(imgs, align=align)
        if texts is not None:
            picture = drawing.with_texts(picture, texts)
        return self._log_media(
            self._write_picture(self.get_save_path(filename), picture), name, step
        )

    def save_image(self, filename, img) -> str:
        """An array of uint8 or uint16 as it is: [H W], [H W 3] or [H W 4]."""
        import cv2

        img = self.convert_data(img)
        if img.dtype not in (np.uint8, np.uint16):
            raise TypeError(
                f"save_image takes uint8 or uint16, not {img.dtype}; save_rgb_image takes [0, 1]."
            )
        if img.ndim == 3 and img.shape[-1] in (3, 4):
            img = cv2.cvtColor(
                img, cv2.COLOR_RGB2BGR if img.shape[-1] == 3 else cv2.COLOR_RGBA2BGRA
            )
        return self._write_picture(self.get_save_path(filename), img)

    def save_img_sequence(
        self,
        filename,
        img_dir,
        matcher,
        save_format="mp4",
        fps=30,
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        """A video of the pictures in img_dir, by the number in matcher's first group.

        img_dir lies below the save folder.
        """
        if save_format not in ("gif", "mp4"):
            raise ValueError(f"save_format should be 'gif' or 'mp4', not {save_format!r}.")
        if not filename.endswith(save_format):
            filename += f".{save_format}"
        pictures = self._numbered(os.path.join(self.get_save_dir(), img_dir), matcher)
        path = self.get_save_path(filename)
        drawing.write_video(path, pictures, fps)
        return self._log_media(path, name, step)

    @staticmethod
    def _numbered(folder: str, matcher: str) -> list[str]:
        """The pictures whose names match, in the order of the number in its first group."""
        pattern = re.compile(matcher)
        there = os.listdir(folder) if os.path.isdir(folder) else []
        numbers = {name: int(m.group(1)) for name in there if (m := pattern.search(name))}
        if not numbers:
            raise FileNotFoundError(
                f"No picture in {folder!r} matches {matcher!r}; the video cannot be made."
            )
        return [os.path.join(folder, name) for name in sorted(numbers, key=numbers.__getitem__)]

    # meshes

    def save_mesh(self, filename, v_pos, t_pos_idx, v_tex=None, t_tex_idx=None) -> str:
        """Vertices and faces, uncoloured, in trimesh's format for the ending (.ply, .glb, ...)."""
        try:
            import trimesh
        except ImportError:
            raise ImportError("Saving a mesh needs trimesh: pip install trimesh") from None
        if v_tex is not None or t_tex_idx is not None:
            raise ValueError("save_mesh writes no texture coordinates; save_obj does.")
        path = self.get_save_path(filename)
        trimesh.Trimesh(
            self.convert_data(v_pos), self.convert_data(t_pos_idx), process=False
        ).export(path)
        return path

    def save_obj(
        self,
        filename: str,
        mesh,
        save_mat: bool = False,
        save_normal: bool = False,
        save_uv: bool = False,
        save_vertex_color: bool = False,
        map_Kd=None,
        map_Ks=None,
        map_Bump=None,
        map_Pm=None,
        map_Pr=None,
        map_format: str = "jpg",
    ) -> list[str]:
        """A Wavefront file; with save_mat its material and textures too. Returns all paths.

        Textures are [H W C] in [0, 1].
        """
        if not filename.endswith(".obj"):
            filename += ".obj"
        paths, header = [], []
        if save_mat:
            material = filename.removesuffix(".obj") + ".mtl"
            maps = {
                "map_Kd": map_Kd,
                "map_Ks": map_Ks,
                "map_Bump": map_Bump,
                "map_Pm": map_Pm,
                "map_Pr": map_Pr,
            }
            paths += self._save_mtl(material, maps, map_format)
            header = [f"mtllib {os.path.basename(material)}", "g object", "usemtl default"]

        lines = wavefront.lines(
            self.convert_data(mesh.v_pos),
            self.convert_data(mesh.t_pos_idx),
            colours=self.convert_data(mesh.v_rgb) if save_vertex_color else None,
            normals=self.convert_data(mesh.v_nrm) if save_normal else None,
            uv=self.convert_data(mesh.v_tex) if save_uv else None,
            texture_faces=self.convert_data(mesh.t_tex_idx) if save_uv else None,
        )
        return [*paths, self._write_lines(filename, [*header, *lines])]

    def _write_lines(self, filename: str, lines: Iterable[str]) -> str:
        path = self.get_save_path(filename)
        with open(path, "w") as file:
            file.writelines(f"{line}\n" for line in lines)
        return path

    def _save_mtl(self, filename: str, maps: dict, map_format: str) -> list[str]:
        """The material file and its textures, which lie beside it."""
        files, paths = {}, []
        for key, texture in maps.items():
            if texture is None:
                continue
            files[key] = f"texture_{wavefront.MAPS[key]}.{map_format}"
            beside = os.path.join(os.path.dirname(filename), files[key])
            texture = self.convert_data(texture)
            if texture.shape[-1] == 1:
                paths.append(
                    self.save_grayscale_image(beside, texture[..., 0], data_range=(0, 1), cmap=None)
                )
            else:
                paths.append(self.save_rgb_image(beside, texture))
        return [self._write_lines(filename, wavefront.material(files)), *paths]

    # data

    def save_data(self, filename, data) -> str:
        """A dict of arrays as .npz, one array as .npy."""
        data = self.convert_data(data)
        ending = ".npz" if isinstance(data, dict) else ".npy"
        path = self.get_save_path(filename if filename.endswith(ending) else filename + ending)
        if isinstance(data, dict):
            np.savez(path, **data)
        else:
            np.save(path, data)
        return path

    def save_state_dict(self, filename, data) -> str:
        path = self.get_save_path(filename)
        torch.save(data, path)
        return path

    def save_file(self, filename, src_path) -> str:
        """A copy of a file."""
        path = self.get_save_path(filename)
        shutil.copyfile(src_path, path)
        return path

    def save_json(self, filename, payload) -> str:
        path = self.get_save_path(filename)
        with open(path, "w") as file:
            json.dump(payload, file)
        return path
