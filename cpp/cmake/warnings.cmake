# slimformer_warnings(target): the warnings that every target is held to. SLIMFORMER_WERROR makes
# them errors (the dev preset does; a release must build with compilers yet unknown).
option(SLIMFORMER_WERROR "Treat warnings as errors" OFF)

function(slimformer_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion -Wshadow)
  if(SLIMFORMER_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
endfunction()
