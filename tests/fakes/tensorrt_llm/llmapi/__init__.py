from tensorrt_llm.llmapi.llm import LLM, RequestOutput
from tensorrt_llm.llmapi.llm_args import CudaGraphConfig, KvCacheConfig, SchedulerConfig
from tensorrt_llm.sampling_params import SamplingParams

__all__ = ["CudaGraphConfig", "KvCacheConfig", "LLM", "RequestOutput", "SamplingParams", "SchedulerConfig"]
