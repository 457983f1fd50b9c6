# Lowering of Fourier transforms: with matrices and with FFTW; after lower.jl, whose helpers it takes.

using FFTW: FFTW

@testset "Fourier transform, $points points, $m and $n" for (points, m, n, Waves) in (
    (1, 1, 1, PyNODE.DenseWaves),
    (8, 8, 5, PyNODE.DenseWaves),
    (9, 5, 9, PyNODE.DenseWaves),
    (101, 101, 101, PyNODE.DenseWaves),
    (128, 128, 65, PyNODE.FastWaves),
    (128, 65, 128, PyNODE.FastWaves),
    (135, 68, 135, PyNODE.FastWaves),
    (135, 135, 135, PyNODE.FastWaves),
    (809, 809, 405, PyNODE.FastWaves),
)
    x, re, im, B = draw(m, 3, 5), draw(m, 3, 5), -draw(m, 3, 5), [1, 0]
    cosines, sines = ([wave(2 * mod(j * k, points) / points) for k in 0:(n - 1), j in 0:(m - 1)] for wave in (cospi, sinpi))
    sums(matrix, x) = reshape(matrix * reshape(x, m, :), n, 3, 5)
    z = input(0, [B, 3, m])
    to = graph(["z"], [z, node("fourier", [0], [B, 3, 2n]; points)])
    from = graph(["z", "z"], [z, input(1, [B, 3, m]), node("fourier_sum", [0, 1], [B, 3, n]; points)])
    for like in (Float64[], JLArray(Float64[]))
        @test evaluate(to, [x], like) ≈ [sums(cosines, x); sums(sines, x)]
        @test evaluate(from, [re, im], like) ≈ sums(cosines, re) - sums(sines, im)
    end
    waves = PyNODE.waves_for(Float64[], points, m, n)
    @test waves isa Waves
    both, one, flat = zeros(2n, 15), zeros(n, 15), reshape(x, m, :)
    turn!(both, one, flat, waves) = (PyNODE.to_waves!(both, flat, waves); PyNODE.from_waves!(one, flat, flat, waves); nothing)
    turn!(both, one, flat, waves)
    @test (@allocated turn!(both, one, flat, waves)) == 0
    @test both ≈ [cosines * flat; sines * flat]
    @test one ≈ cosines * flat - sines * flat
end

@testset "without FFTW" begin
    # As where the extension is not there.
    @test invoke(PyNODE.fast_transforms, Tuple{Any,Any}, Float64, 128) === nothing
    @test PyNODE.waves_for(Float16[], 128, 128, 65) isa PyNODE.DenseWaves
end
