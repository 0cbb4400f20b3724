# The instruction-set tiers: the only place that says how each is compiled and what it needs.
#
#   tier | parent | compiler flags | CPU features (names of CpuFeature) beyond the parent's
#
# A tier starts from its parent's kernels and replaces some (cpp/kernels/<tier>/<tier>.cc).
# Parents come before their children, lower tiers before higher ones. Contraction of a * b + c is
# off for the scalar tier, the oracle, so that it rounds as written. VBMI, which looks bytes up,
# and VBMI2, which expands sparse weights, have no tier of their own: but for Cooper Lake every CPU
# with dot products of bfloat16 has them. Tile instructions are written in assembly, so the amx tier
# needs no flag of a newer compiler.
set(SLIMFORMER_TIERS "scalar|scalar|-ffp-contract=off|")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(avx2 "-mavx2 -mfma -mf16c -mbmi2")
  set(avx512 "${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl")
  set(avx512_bf16 "${avx512} -mavx512vnni -mavx512bf16 -mavx512vbmi -mavx512vbmi2")
  list(APPEND SLIMFORMER_TIERS
    "avx2|scalar|${avx2}|avx,avx2,fma,f16c,bmi2"
    "avx512|avx2|${avx512}|avx512f,avx512bw,avx512dq,avx512vl"
    "avx512_vnni|avx512|${avx512} -mavx512vnni|avx512vnni"
    "avx512_bf16|avx512_vnni|${avx512_bf16}|avx512bf16,avx512vbmi,avx512vbmi2"
    "amx|avx512_bf16|${avx512_bf16}|amx_tile,amx_int8,amx_bf16")
endif()

# Adds every tier's object to `target`, and the table as kernels/tiers.inc for the registry.
function(slimformer_add_tiers target)
  set(entries "// From cpp/cmake/isa.cmake.\n")
  foreach(row IN LISTS SLIMFORMER_TIERS)
    string(REPLACE "|" ";" row "${row}")
    list(GET row 0 tier)
    list(GET row 1 parent)
    list(GET row 2 flags)
    list(GET row 3 features)

    separate_arguments(flags)
    add_library(slimformer_${tier} OBJECT ${tier}/${tier}.cc)
    target_include_directories(slimformer_${tier} PRIVATE ${PROJECT_SOURCE_DIR}/cpp)
    slimformer_warnings(slimformer_${tier})
    target_compile_options(slimformer_${tier} PRIVATE -fno-exceptions -fno-rtti -fno-math-errno
      ${flags})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:slimformer_${tier}>)

    string(REPLACE "," ";" features "${features}")
    list(TRANSFORM features PREPEND ", CpuFeature::")
    list(JOIN features "" features)
    string(APPEND entries "SLIMFORMER_TIER(${tier}, ${parent}${features})\n")
  endforeach()
  file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/generated/kernels/tiers.inc CONTENT "${entries}")
  target_include_directories(${target} PRIVATE ${PROJECT_BINARY_DIR}/generated)
endfunction()
