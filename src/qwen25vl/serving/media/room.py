import asyncio

from qwen25vl.processing.prepare import Preparation, prepare_part


class MediaRoom:
    def __init__(self, limits, processor, dtype):
        self.limits, self.processor, self.dtype = limits, processor, dtype

    async def start(self):
        pass

    async def close(self):
        pass

    async def resolve(self, messages, *, mm_processor_kwargs=None, media_io_kwargs=None):
        return messages

    async def prepare(self, part):
        p = self.processor
        how = Preparation(
            p.image_processor.settings,
            p.video_processor.settings,
            p.video_processor.options(),
            50_000_000,
            self.dtype,
            (),
        )
        return await asyncio.to_thread(prepare_part, part, how)
