using Aqua: Aqua
using ExplicitImports: check_no_implicit_imports, check_no_stale_explicit_imports

@testset "quality" begin
    Aqua.test_all(PyNODE; ambiguities = false)
    @test check_no_implicit_imports(PyNODE) === nothing
    # Only generated programs use these.
    generated = (:batched_transpose, :digamma, :erf, :erfc, :erfcx, :tanh_fast)
    @test check_no_stale_explicit_imports(PyNODE; ignore = generated) === nothing
end
