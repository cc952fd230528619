// Where there is no libFuzzer: replays seeds, then mutates them and what it finds. An input that
// takes a new way through code compiled with -fsanitize-coverage=trace-pc is kept, to be mutated
// further. The same seed gives the same inputs.
// usage: NAME NUMBER_OF_INPUTS RANDOM_SEED SEED_FILE ...
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace {

using Bytes = std::vector<uint8_t>;
constexpr size_t kMostBytes = 2000;
constexpr size_t kMostKept = 4096;  // inputs

Bytes current;

// From one block of code to the next: a hash of both addresses.
std::array<bool, 1 << 16> ways;
size_t num_ways = 0;
uintptr_t block_before = 0;

// The input that broke something, to be made a seed.
void Save() {
  std::FILE* file = std::fopen("crash-input", "wb");
  if (file == nullptr) return;
  std::fwrite(current.data(), 1, current.size(), file);
  std::fclose(file);
  std::fputs("the input is in ./crash-input\n", stderr);
}
void SaveAndAbort(int) {
  Save();
  std::signal(SIGABRT, SIG_DFL);
  std::abort();
}

// One to four small changes: a bit, a byte, bytes copied, cut or put in, or another seed's rest.
Bytes Mutated(const std::vector<Bytes>& seeds, std::minstd_rand* rng) {
  const auto below = [rng](size_t end) { return end == 0 ? 0 : (*rng)() % end; };
  Bytes bytes = seeds[below(seeds.size())];
  for (size_t changes = 1 + below(4); changes > 0; --changes) {
    if (bytes.empty()) bytes.push_back(0);
    const size_t at = below(bytes.size());
    const auto here = bytes.begin() + static_cast<ptrdiff_t>(at);
    const size_t length = 1 + below(std::min<size_t>(bytes.size() - at, 48));
    switch (below(7)) {
      case 0:
        bytes[at] ^= static_cast<uint8_t>(1 << below(8));
        break;
      case 1:
        bytes[at] = static_cast<uint8_t>(below(256));
        break;
      case 2:
        bytes[at] = static_cast<uint8_t>(below(2) == 0 ? 0 : 255);
        break;
      case 3:
        bytes.erase(here, here + static_cast<ptrdiff_t>(length));
        break;
      case 4: {
        const Bytes copy(here, here + static_cast<ptrdiff_t>(length));
        const size_t to = below(bytes.size());
        bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(to), copy.begin(), copy.end());
        break;
      }
      case 5:
        bytes.insert(here, static_cast<uint8_t>(below(256)));
        break;
      default: {
        const Bytes& other = seeds[below(seeds.size())];
        const size_t from = below(other.size());
        bytes.resize(at);
        bytes.insert(bytes.end(), other.begin() + static_cast<ptrdiff_t>(from), other.end());
      }
    }
    if (bytes.size() > kMostBytes) bytes.resize(kMostBytes);
  }
  return bytes;
}

// Returns whether the input in hand took a way that none before it had.
bool IsNew() {
  const size_t before = num_ways;
  block_before = 0;
  LLVMFuzzerTestOneInput(current.data(), current.size());
  return num_ways > before;
}

}  // namespace

// Called at each block of what is compiled with -fsanitize-coverage=trace-pc; a sanitizer here
// would cost a tenth of the time.
extern "C" __attribute__((no_sanitize("address", "undefined"))) void __sanitizer_cov_trace_pc() {
  const auto here = reinterpret_cast<uintptr_t>(__builtin_return_address(0)) -
                    reinterpret_cast<uintptr_t>(&LLVMFuzzerTestOneInput);
  bool* const known = ways.data() + (here * 31 ^ block_before) % ways.size();
  num_ways += !*known;
  *known = true;
  block_before = here * 17;
}

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s NUMBER_OF_INPUTS RANDOM_SEED SEED_FILE ...\n", argv[0]);
    return 2;
  }
  std::signal(SIGABRT, SaveAndAbort);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(Save);
  std::vector<Bytes> seeds;
  for (int i = 3; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    current = seeds.back();
    IsNew();
  }
  const size_t num_given = seeds.size();
  std::minstd_rand rng(static_cast<uint32_t>(std::strtoul(argv[2], nullptr, 10)));
  const auto number = std::strtoull(argv[1], nullptr, 10);
  const std::clock_t begun = std::clock();
  for (uint64_t i = 0; i < number; ++i) {
    current = Mutated(seeds, &rng);
    if (IsNew() && seeds.size() < kMostKept) seeds.push_back(current);
  }
  const double took = static_cast<double>(std::clock() - begun) / CLOCKS_PER_SEC;
  std::printf(
      "%zu seeds and %zu found, %llu inputs, %.0f a second of a core, %zu ways through the code\n",
      num_given, seeds.size() - num_given, static_cast<unsigned long long>(number),
      static_cast<double>(number) / std::max(took, 1e-9), num_ways);
  return 0;
}
