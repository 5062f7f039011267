/* Powers the machine off through ACPI: SLP_TYP 5 and SLP_EN in PM1a control. It passes if that is its end. */
#define LONG 0
#include "common.inc"
        GUEST "poweroff"

main:   STEP "S5"
        mov dx, 0x604
        in ax, dx
        movzx eax, ax
        and eax, 1
        CHECK_EQ "SCI_EN: ACPI is on", eax, 1
        mov ax, 5 << 10                         /* without SLP_EN nothing happens */
        out dx, ax
        mov ax, 5 << 10 | 1 << 13
        out dx, ax
        mov ecx, 100000000
1:      pause
        loop 1b
        mov eax, 0
        CHECK_EQ "it goes off", eax, 1
